//! JSON Schemas of settings, read: which keys there are, their documentation and what they may hold.

use serde_json::Value;

/// Similarity (Jaro-Winkler, 0 to 1) from which one name is suggested in place of another.
const SUGGESTED_FROM: f64 = 0.8;

/// A schema within the document that its references point into.
#[derive(Clone, Copy, Debug)]
pub struct Schema<'a> {
    root: &'a Value,
    node: &'a Value,
}

/// One of the values that a setting may have.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice<'a> {
    /// The value.
    pub value: &'a Value,
    /// Its documentation.
    pub description: Option<&'a str>,
}

impl<'a> Schema<'a> {
    /// The schema of a whole document.
    #[must_use]
    pub fn new(root: &'a Value) -> Self {
        Self { root, node: root }
    }

    fn part(self, node: &'a Value) -> Self {
        Self { root: self.root, node }
    }

    /// The value of a keyword such as `type` or `default`.
    #[must_use]
    pub fn keyword(self, name: &str) -> Option<&'a Value> {
        self.node.get(name)
    }

    /// The value of a keyword that holds text.
    #[must_use]
    pub fn text(self, name: &str) -> Option<&'a str> {
        self.keyword(name)?.as_str()
    }

    /// The value of a keyword that holds a list; empty without it.
    #[must_use]
    pub fn list(self, name: &str) -> &'a [Value] {
        self.keyword(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The schema that a keyword holds, such as `items`.
    #[must_use]
    pub fn subschema(self, name: &str) -> Option<Self> {
        Some(self.part(self.keyword(name)?))
    }

    /// The schemas that a keyword lists, such as `oneOf`.
    pub fn subschemas(self, name: &str) -> impl Iterator<Item = Self> + use<'a> {
        self.list(name).iter().map(move |node| self.part(node))
    }

    /// Whether this is the schema `false`, which no value satisfies.
    #[must_use]
    pub fn allows_nothing(self) -> bool {
        *self.node == Value::Bool(false)
    }

    /// The target of this schema's own `$ref`.
    #[must_use]
    pub fn referenced(self) -> Option<Self> {
        let pointer = self.text("$ref")?.strip_prefix('#')?;
        Some(self.part(self.root.pointer(pointer)?))
    }

    /// The target of the `$ref`, or this schema where it has none.
    #[must_use]
    pub fn resolved(self) -> Self {
        self.referenced().unwrap_or(self)
    }

    /// The names of the allowed types; empty where any is allowed.
    #[must_use]
    pub fn types(self) -> Vec<&'a str> {
        match self.keyword("type") {
            Some(Value::String(name)) => vec![name],
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        }
    }

    /// The schemas of this table's own keys.
    pub fn properties(self) -> impl Iterator<Item = (&'a str, Self)> + use<'a> {
        let properties = self.keyword("properties").and_then(Value::as_object);
        let properties = properties.into_iter().flatten();
        properties.map(move |(name, node)| (name.as_str(), self.part(node)))
    }

    /// The schema of one of this table's own keys.
    #[must_use]
    pub fn property(self, name: &str) -> Option<Self> {
        Some(self.part(self.keyword("properties")?.get(name)?))
    }

    /// This schema and all that describe the same value beside it, or as one of several forms of it.
    #[must_use]
    pub fn forms(self) -> Vec<Self> {
        let mut found = Vec::new();
        self.collect_forms(&mut found);
        found
    }

    fn collect_forms(self, found: &mut Vec<Self>) {
        // A schema may refer to itself.
        if found.iter().any(|form| std::ptr::eq(form.node, self.node)) {
            return;
        }
        found.push(self);
        let alternatives = ["oneOf", "anyOf", "allOf"].map(|keyword| self.subschemas(keyword));
        for form in self.referenced().into_iter().chain(alternatives.into_iter().flatten()) {
            form.collect_forms(found);
        }
    }

    /// The schema at a dotted key, in whichever form of the value has it.
    #[must_use]
    pub fn at(self, key: &str) -> Option<Self> {
        key.split('.').filter(|name| !name.is_empty()).try_fold(self, |schema, name| {
            schema.forms().into_iter().find_map(|form| form.property(name))
        })
    }

    /// The values that are allowed where these are listed, by `const`, `enum`, or as the forms of a
    /// documented enumeration. Empty where other values are allowed too.
    #[must_use]
    pub fn choices(self) -> Vec<Choice<'a>> {
        let schema = self.resolved();
        let own = schema.own_choices();
        if !own.is_empty() {
            return own;
        }
        let of_forms: Vec<_> = schema.subschemas("oneOf").map(Self::own_choices).collect();
        if of_forms.iter().any(Vec::is_empty) { Vec::new() } else { of_forms.concat() }
    }

    fn own_choices(self) -> Vec<Choice<'a>> {
        let description = self.text("description");
        match self.keyword("const") {
            Some(value) => vec![Choice { value, description }],
            None => {
                self.list("enum").iter().map(|value| Choice { value, description: None }).collect()
            }
        }
    }
}

/// The most similar of the known names, if one is similar enough to be what was meant.
pub fn closest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let (similarity, known) = most_similar(known, |known| strsim::jaro_winkler(name, known))?;
    (similarity >= SUGGESTED_FROM).then_some(known)
}

/// As [`closest`] among dotted keys, where the last name decides. Of equally similar names, one in the
/// same table is preferred.
pub fn closest_key<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let parts = |key: &'a str| key.rsplit_once('.').unwrap_or(("", key));
    let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
    let (similarity, known) = most_similar(known, |known| {
        let (its_table, its_name) = parts(known);
        let same_table = if its_table == table { 0.05 } else { 0.0 };
        strsim::jaro_winkler(name, its_name) + same_table
    })?;
    (similarity >= SUGGESTED_FROM).then_some(known)
}

fn most_similar<'a>(
    known: impl IntoIterator<Item = &'a str>,
    similarity: impl Fn(&'a str) -> f64,
) -> Option<(f64, &'a str)> {
    let scored = known.into_iter().map(|known| (similarity(known), known));
    scored.max_by(|(a, _), (b, _)| a.total_cmp(b))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_found_through_references_and_in_every_form_of_a_value() {
        let document = json!({
            "properties": {"table": {"$ref": "#/$defs/Table"}},
            "$defs": {"Table": {"anyOf": [
                {"properties": {"a": {"type": "integer"}}},
                {"properties": {"b": {"type": ["string", "null"]}}},
                {"$ref": "#/$defs/Table"},
            ]}},
        });
        let schema = Schema::new(&document);
        assert_eq!(schema.at("table.a").unwrap().types(), ["integer"]);
        assert_eq!(schema.at("table.b").unwrap().types(), ["string", "null"]);
        assert!(schema.at("table.c").is_none());
    }

    #[test]
    fn choices_are_those_of_an_enumeration_documented_or_not() {
        let document = json!({"$defs": {
            "Plain": {"enum": ["a", "b"]},
            "Documented": {"oneOf": [{"const": "a", "description": "First."}, {"enum": ["b"]}]},
            "Open": {"oneOf": [{"const": "a"}, {"type": "string"}]},
        }, "properties": {"plain": {"$ref": "#/$defs/Plain"}}});
        let schema = Schema::new(&document);
        let names = |schema: Schema<'_>| {
            let choices = schema.choices();
            choices.iter().map(|choice| choice.value.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(schema.at("plain").unwrap()), ["\"a\"", "\"b\""]);
        let definition = |name| schema.part(&document["$defs"][name]);
        assert_eq!(names(definition("Documented")), ["\"a\"", "\"b\""]);
        assert_eq!(definition("Documented").choices()[0].description, Some("First."));
        assert_eq!(names(definition("Open")), [] as [&str; 0]);
    }

    #[test]
    fn only_a_similar_name_is_suggested() {
        assert_eq!(closest("lenght", ["length", "words"]), Some("length"));
        assert_eq!(closest("zzz", ["length", "words"]), None);
        let known = ["eta", "training.eta", "training.epochs"];
        assert_eq!(closest_key("training.etta", known), Some("training.eta"));
    }
}
