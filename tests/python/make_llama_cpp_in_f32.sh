#!/usr/bin/env bash
# usage: make_llama_cpp_in_f32.sh DIRECTORY
# Makes a Python environment with a llama.cpp that rounds nothing to half precision while it computes: products with
# f16 weights take the other operand in f32, and GELU is computed instead of looked up. Takes some minutes of a C++
# compiler. Then SPPO_LLAMA_CPP_IN_F32=DIRECTORY/bin/python has tests/transformers.rs compare f16 files with it.
set -euo pipefail
python3 -m venv "$1"
directory=$(cd "$1" && pwd)
export PATH="$directory/bin:$PATH"
pip -q install numpy gguf scikit-build-core cmake ninja jinja2 diskcache typing-extensions
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
cd "$sources"
pip -q download --no-deps --no-binary :all: --no-build-isolation llama-cpp-python==0.3.36
tar xf llama_cpp_python-*.tar.gz
cd llama_cpp_python-*/
python - <<'EOF'
from pathlib import Path

cpu = Path("vendor/llama.cpp/ggml/src/ggml-cpu")


def change(name, before, after):
    file = cpu / name
    text = file.read_text()
    assert text.count(before) == 1, f"{name}: {text.count(before)} times {before!r}"
    file.write_text(text.replace(before, after))


change("vec.h", "#define GGML_GELU_FP16\n", "")
change("vec.h", "#define GGML_GELU_QUICK_FP16\n", "")
change(
    "ggml-cpu.c",
    "(ggml_vec_dot_t) ggml_vec_dot_f16,\n        .vec_dot_type             = GGML_TYPE_F16,",
    "(ggml_vec_dot_t) dot_f16_f32,\n        .vec_dot_type             = GGML_TYPE_F32,",
)
traits = "static const struct ggml_type_traits_cpu type_traits_cpu"
change("ggml-cpu.c", traits, """static void dot_f16_f32(
    int n, float * s, size_t bs, const void * x, size_t bx, const void * y, size_t by, int rows) {
    const ggml_fp16_t * half = x;
    const float * full = y;
    double sum = 0.0;
    for (int i = 0; i < n; i++) sum += (double) GGML_CPU_FP16_TO_FP32(half[i]) * (double) full[i];
    *s = (float) sum;
    (void) bs; (void) bx; (void) by; (void) rows;
}

""" + traits)
EOF
CMAKE_ARGS="-DGGML_OPENMP=OFF -DLLAVA_BUILD=OFF -DGGML_LLAMAFILE=OFF" pip -q install --no-build-isolation --no-deps .
