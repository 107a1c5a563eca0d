//! What is allowed and yet doubtful. `check` shows it, and a bridge logs it at its start.

use std::time::Duration;

use humantime::format_duration;

use super::Settings;
use crate::outbox::Sync;

/// How long the platform lets a signature live, several times over.
const USUAL_SKEW_SECONDS: u64 = 5 * 60;

pub(super) fn of(settings: &Settings) -> Vec<String> {
    let mut warnings = risks(settings);
    warnings.extend(times(settings));
    warnings
}

/// Risks that somebody may have good reasons to take.
fn risks(settings: &Settings) -> Vec<String> {
    let mut warnings = Vec::new();
    for app in settings.ingress.apps.iter().filter(|app| app.allow_unsigned) {
        warnings.push(format!(
            "apps: callbacks without a Sign are taken for the app {} (allow_unsigned): whoever reaches the \
             listener can publish events",
            app.sdk_app_id
        ));
    }
    let loss = match settings.outbox.sync {
        Sync::Full => None,
        Sync::Normal => Some(
            "outbox.sync = \"normal\": events that were answered OK in the last seconds before a power \
             cut or a crash of the host are lost",
        ),
        Sync::Off => Some(
            "outbox.sync = \"off\": a power cut or a crash of the host loses events that were answered \
             OK, and may damage the outbox",
        ),
    };
    warnings.extend(loss.map(str::to_owned));
    let listen = settings.admin.listen;
    if !listen.ip().is_loopback() {
        warnings.push(format!(
            "admin.listen: the private listener has no authentication, and its address {listen} is public: \
             restrict access by other means"
        ));
    }
    let skew = settings.ingress.max_skew_seconds;
    if skew > USUAL_SKEW_SECONDS {
        let skew = format_duration(Duration::from_secs(skew));
        warnings.push(format!(
            "ingress.max_skew: whoever has seen a signed request can use it again for {skew}; the platform \
             asks for one minute"
        ));
    }
    warnings
}

/// Times that contradict each other.
fn times(settings: &Settings) -> Option<String> {
    let (head, idle) = (settings.ingress.header_timeout, settings.ingress.idle_timeout);
    (head > idle).then(|| {
        let [head, idle] = [head, idle].map(format_duration);
        format!(
            "ingress.header_timeout: {head} is longer than ingress.idle_timeout, which ends the wait for a \
             first request ({idle})"
        )
    })
}
