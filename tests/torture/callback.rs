//! The callbacks of a run: each is drawn from the run's seed and its own number, so that the judge knows what its event
//! has to say without asking the bridge.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::bridge::{APP, TOPIC_CREATED};

/// The namespace of event ids, as docs/consuming.md has it for whoever wants to compute them.
const EVENT_IDS: Uuid = Uuid::from_u128(0x22f64f84_0446_59ea_94db_3f472410cb17);

pub(crate) struct Callback {
    pub(crate) body: String,
    /// The event's `data`, but for `accepted_at`, which only the bridge knows.
    pub(crate) data: Value,
    pub(crate) event_time: Option<u64>,
}

/// What all topics of a run begin with.
pub(crate) fn prefix(seed: u64, tag: u64) -> String {
    format!("@TGS#_@TGS#t{seed}x{tag}@TOPIC#_@TOPIC#")
}

impl Callback {
    /// `lane` is the connection that carries it, and each lane has a group of its own.
    pub(crate) fn draw(prefix: &str, seed: u64, lane: usize, number: usize) -> Self {
        let mut draw =
            fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9).wrapping_add(number as u64));
        let (topic_id, group_id) = (format!("{prefix}{number}"), format!("@TGS#lane.{lane}"));
        let (name, operator, owner) = (text(&mut draw, 40), text(&mut draw, 8), text(&mut draw, 8));
        let mut body = json!({
            "CallbackCommand": TOPIC_CREATED,
            "GroupId": group_id,
            "TopicId": topic_id,
            "Operator_Account": operator,
            "Owner_Account": owner,
            "Type": "Community",
            "Name": name,
        });
        let mut data = json!({
            "sdk_app_id": APP,
            "topic_id": topic_id,
            "topic_name": name,
            "group_id": group_id,
            "group_type": "Community",
            "operator": operator,
            "owner": owner,
            "client": {"ip": "127.0.0.1", "platform": "iOS"},
        });
        let fields: Vec<_> = (0..draw.usize(..4))
            .map(|_| (format!("key {}", draw.u8(..2)), text(&mut draw, 400)))
            .collect();
        if !fields.is_empty() {
            let list = |key: &str, value: &str| -> Value {
                fields.iter().map(|(k, v)| json!({key: k, value: v})).collect()
            };
            body["UserDefinedDataList"] = list("Key", "Value");
            data["custom_fields"] = list("key", "value");
        }
        let mut extra = Map::new();
        if draw.u8(..4) == 0 {
            extra
                .insert("InviteOption".into(), json!({"a": [null, u64::MAX, text(&mut draw, 20)]}));
        }
        body.as_object_mut().unwrap().extend(extra.clone());
        data["extra"] = extra.into();
        let event_time =
            (draw.u8(..4) == 0).then(|| draw.u64(1_600_000_000_000..1_800_000_000_000));
        if let Some(time) = event_time {
            body["EventTime"] = if draw.bool() { json!(time) } else { json!(time.to_string()) };
        }
        Callback { body: body.to_string(), data, event_time }
    }

    /// A function of the event alone.
    pub(crate) fn id(&self) -> String {
        let topic_id = self.data["topic_id"].as_str().unwrap();
        let time = self.event_time.map(|time| time.to_string()).unwrap_or_default();
        Uuid::new_v5(&EVENT_IDS, format!("{APP}/{time}/{topic_id}").as_bytes()).to_string()
    }
}

/// What a user may type, of up to so many characters; seldom a long one.
fn text(draw: &mut fastrand::Rng, most: usize) -> String {
    const ODD: [char; 12] =
        ['"', '\\', '/', '\u{1}', '\n', '\u{7f}', 'ü', '話', '🍵', '\u{2028}', '%', '\u{fffd}'];
    let most = if draw.u8(..50) == 0 { most * 20 } else { most };
    let odd = |draw: &mut fastrand::Rng| ODD[draw.usize(..ODD.len())];
    (0..draw.usize(1..=most))
        .map(|_| if draw.u8(..6) == 0 { odd(draw) } else { draw.alphanumeric() })
        .collect()
}
