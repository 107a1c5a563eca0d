//! What others can hold the bridge to: the JSON Schemas of the event, its data and the configuration, and the AsyncAPI
//! document, as they are in `docs/`. They are embedded, so that a program and its contracts cannot drift apart.

/// Why schemas are named as they are: what follows it names a file, with `.` for `:`.
const URN: &str = "urn:topic-bridge:schema:";

const JSON_SCHEMA: &str = "application/schema+json";

pub(crate) struct Document {
    /// Below `docs/`, and below the private listener's `/`, so that references between them hold in both.
    pub(crate) path: &'static str,
    pub(crate) content_type: &'static str,
    pub(crate) text: &'static str,
}

pub(crate) const EVENT: Document = Document {
    path: "schema/topic-created-event.v1.json",
    content_type: JSON_SCHEMA,
    text: include_str!("../docs/schema/topic-created-event.v1.json"),
};

pub(crate) const DATA: Document = Document {
    path: "schema/topic-created.v1.json",
    content_type: JSON_SCHEMA,
    text: include_str!("../docs/schema/topic-created.v1.json"),
};

pub(crate) const CONFIG: Document = Document {
    path: "schema/config.v1.json",
    content_type: JSON_SCHEMA,
    text: include_str!("../docs/schema/config.v1.json"),
};

pub(crate) const ASYNCAPI: Document = Document {
    path: "asyncapi.yaml",
    content_type: "application/vnd.aai.asyncapi+yaml",
    text: include_str!("../docs/asyncapi.yaml"),
};

pub(crate) const ALL: [Document; 4] = [EVENT, DATA, CONFIG, ASYNCAPI];

/// The schema with this file name, or this URN, as `dataschema` has it.
pub(crate) fn find(name: &str) -> Option<Document> {
    let file = match name.strip_prefix(URN) {
        Some(rest) => format!("schema/{}.json", rest.replace(':', ".")),
        None => format!("schema/{name}"),
    };
    ALL.into_iter().find(|document| document.path == file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::DATA_SCHEMA;
    use serde_json::Value;

    fn parsed(document: &Document) -> Value {
        serde_json::from_str(document.text).unwrap()
    }

    #[test]
    fn a_schema_is_found_by_its_file_and_by_its_urn() {
        for document in [EVENT, DATA, CONFIG] {
            let file = document.path.strip_prefix("schema/").unwrap();
            assert_eq!(find(file).unwrap().path, document.path);
            let urn = parsed(&document)["$id"].as_str().unwrap().to_owned();
            assert_eq!(find(&urn).unwrap().path, document.path, "{urn}");
        }
        assert_eq!(find(DATA_SCHEMA).unwrap().path, DATA.path);
        for unknown in ["", "asyncapi.yaml", "../asyncapi.yaml", "urn:topic-bridge:schema:", "x"] {
            assert!(find(unknown).is_none(), "{unknown}");
        }
    }

    /// The event's schema is whole in one file, and its data's is not another one than that of its own file.
    #[test]
    fn the_schema_of_the_data_is_the_same_in_that_of_the_event() {
        let (event, mut data) = (parsed(&EVENT), parsed(&DATA));
        data.as_object_mut().unwrap().retain(|key, _| key != "$id" && key != "$schema");
        assert_eq!(event["$defs"]["data"], data);
        assert_eq!(event["properties"]["dataschema"]["const"], DATA_SCHEMA);
    }
}
