//! The platform's other commands, which are answered and counted. Their names become labels of a metric, so
//! the set is closed: no sender can add to it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};

use super::Text;

/// The label under which another command is counted: its own name if it is documented, otherwise that of
/// its family if it has one here.
pub(crate) fn command_label(command: &str) -> &'static str {
    let is_it =
        |known: &&str| known == &command || (known.ends_with('.') && command.starts_with(*known));
    KNOWN_COMMANDS.iter().copied().find(is_it).unwrap_or("other")
}

/// What the platform documents, then families that may well grow, then all others.
pub(crate) const KNOWN_COMMANDS: [&str; 61] = [
    "Alert.RequestOverLimit",
    "Bot.OnC2CMessage",
    "Bot.OnGroupMessage",
    "C2C.CallbackAfterMsgReport",
    "C2C.CallbackAfterMsgWithDraw",
    "C2C.CallbackAfterSendMsg",
    "C2C.CallbackBeforeSendMsg",
    "Chatbot.OnC2CSignalMessage",
    "ContentCallback.ResultNotify",
    "Follow.CallbackAfterFollowAdd",
    "Follow.CallbackAfterFollowDelete",
    "Group.CallbackAfterChangeGroupOwner",
    "Group.CallbackAfterCreateGroup",
    "Group.CallbackAfterGroupAttrChanged",
    "Group.CallbackAfterGroupDestroyed",
    "Group.CallbackAfterGroupFull",
    "Group.CallbackAfterGroupInfoChanged",
    "Group.CallbackAfterMemberExit",
    "Group.CallbackAfterMemberFieldChanged",
    "Group.CallbackAfterNewMemberJoin",
    "Group.CallbackAfterReadReceipt",
    "Group.CallbackAfterRecallMsg",
    "Group.CallbackAfterSendMsg",
    "Group.CallbackAfterTopicDestroyed",
    "Group.CallbackAfterTopicInfoChanged",
    "Group.CallbackBeforeApplyJoinGroup",
    "Group.CallbackBeforeCreateGroup",
    "Group.CallbackBeforeCreateTopic",
    "Group.CallbackBeforeInviteJoinGroup",
    "Group.CallbackBeforeSendMsg",
    "Group.CallbackOnDailyGroupQuotaAlarm",
    "Group.CallbackOnMemberStateChange",
    "Group.CallbackSendMsgException",
    "OfficialAccount.CallbackAfterAddSubscriber",
    "OfficialAccount.CallbackAfterCreateOfficialAccount",
    "OfficialAccount.CallbackAfterDeleteSubscriber",
    "OfficialAccount.CallbackAfterMsgWithDraw",
    "OfficialAccount.CallbackAfterOfficialAccountDestroyed",
    "OfficialAccount.CallbackAfterOfficialAccountFull",
    "OfficialAccount.CallbackAfterOfficialAccountInfoChanged",
    "OfficialAccount.CallbackAfterSendMsg",
    "OfficialAccount.CallbackBeforeAddSubscriber",
    "OfficialAccount.CallbackBeforeCreateOfficialAccount",
    "OfficialAccount.CallbackBeforeSendMsg",
    "Profile.CallbackPortraitSet",
    "Push.AllMemberPush",
    "Push.OfflinePush",
    "Sns.CallbackBlackListAdd",
    "Sns.CallbackBlackListDelete",
    "Sns.CallbackFriendAdd",
    "Sns.CallbackFriendDelete",
    "Sns.CallbackPrevFriendAdd",
    "Sns.CallbackPrevFriendResponse",
    "State.StateChange",
    "Alert.",
    "Bot.",
    "Chatbot.",
    "ContentCallback.",
    "OfficialAccount.",
    "Push.",
    "other",
];

/// The `CallbackCommand` in a body, if the body is a JSON object and has one that is text.
pub(crate) fn command_in(body: &[u8]) -> Option<Cow<'_, str>> {
    let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
    let mut json = serde_json::Deserializer::from_slice(body);
    let command = json.deserialize_map(CommandVisitor).ok()?;
    json.end().ok()?;
    command
}

struct CommandVisitor;

impl<'de> Visitor<'de> for CommandVisitor {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut command = None;
        while let Some(Text(key)) = map.next_key()? {
            if key == "CallbackCommand" {
                command = Some(map.next_value::<Text>()?.0);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_counted_as_itself_or_as_its_family_or_as_another() {
        for known in KNOWN_COMMANDS {
            assert_eq!(command_label(known), known);
        }
        for (command, label) in [
            ("Bot.OnC2CMessage", "Bot.OnC2CMessage"),
            ("Bot.OnSomethingNew", "Bot."),
            ("OfficialAccount.CallbackAfterSomethingNew", "OfficialAccount."),
            ("Push.", "Push."),
            ("Alert.x\n\"y", "Alert."),
            ("Botany.Callback", "other"),
            ("bot.OnC2CMessage", "other"),
            ("Group.CallbackAfterSomethingNew", "other"),
            ("", "other"),
        ] {
            assert_eq!(command_label(command), label, "{command:?}");
        }
    }

    #[test]
    fn a_bodys_command_is_found_only_where_it_says_one() {
        for (body, expected) in [
            (r#"{"CallbackCommand":"a"}"#, Some("a")),
            (
                "\u{feff} {\"x\":[{\"CallbackCommand\":1}],\"CallbackCommand\":\"\\u0061\"} ",
                Some("a"),
            ),
            (r#"{"CallbackCommand":"b","CallbackCommand":"a"}"#, Some("a")),
            (r#"{"CallbackCommand":1}"#, None),
            (r#"{"callbackcommand":"a"}"#, None),
            (r#"["a"]"#, None),
            (r#"{"CallbackCommand":"a"} x"#, None),
            ("", None),
        ] {
            assert_eq!(command_in(body.as_bytes()).as_deref(), expected, "{body}");
        }
    }

    #[test]
    fn no_name_hides_behind_an_earlier_one() {
        for (at, known) in KNOWN_COMMANDS.iter().enumerate() {
            assert!(!KNOWN_COMMANDS[..at].contains(known), "{known} is listed twice");
        }
    }
}
