"""A judge that prefers the shorter answer. Run it: python pairwise_server.py 8000"""
import json, math, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

def preference(messages, first, second):
    """The probability that `first` answers the conversation better than `second`."""
    return 1 / (1 + math.exp((len(first) - len(second)) / 100))

class Judge(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
        reply = json.dumps({"probabilities": [preference(**item) for item in items]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Judge).serve_forever()
