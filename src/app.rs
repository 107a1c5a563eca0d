//! The composition root: builds everything, runs it, and stops it in order. Nothing here is global,
//! so several bridges can run in one process.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::admin::Admin;
use crate::config::{Config, Sync};
use crate::ingress::Ingress;
use crate::metrics::Metrics;
use crate::outbox::{self, Health, Outbox, Workers};
use crate::relay::Relay;
use crate::server::{self, Limits, Phase, Server};
use crate::sink::Sink;
use crate::time::Clock;
use crate::tls;

/// After the listener is closed, how long a kept-alive connection may still bring the request that
/// was on its way: closing at once would cut it off. As long as the platform itself waits; the wait
/// ends when all connections are gone.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// How long past their own deadlines requests in progress may take to end.
const GRACE: Duration = Duration::from_secs(1);

/// A bridge that is ready to run.
pub struct App {
    config: Config,
    outbox: Outbox,
    workers: Workers,
    relay: Relay,
    ingress: Arc<Ingress>,
    admin: Admin,
    ingress_listener: TcpListener,
    admin_listener: TcpListener,
    tls: Option<watch::Receiver<Arc<tokio_rustls::rustls::ServerConfig>>>,
    ingress_phase: watch::Sender<Phase>,
    admin_phase: watch::Sender<Phase>,
}

impl App {
    /// Opens the outbox and binds both listeners. Nothing is served yet.
    pub async fn build(config: Config) -> anyhow::Result<Self> {
        let sink_name = config.sink.name();
        let sink = Sink::new(&config)?;
        warn_of_weak_points(&config);
        let tls = config.ingress.tls.clone().map(tls::watch).transpose().context("ingress.tls")?;
        let ingress_listener =
            server::bind(config.ingress.listen).await.context("ingress.listen")?;
        let admin_listener = server::bind(config.admin.listen).await.context("admin.listen")?;

        let metrics = Arc::new(Metrics::new(sink_name));
        let limits = outbox::Limits {
            max_queued: config.ingress.max_in_flight,
            slow: config.ingress.ack_deadline,
        };
        let clock = Clock::system();
        let (outbox, workers) = Outbox::open(&config.outbox, limits, metrics.clone(), clock)?;
        let relay = Relay::new(
            config.relay.clone(),
            outbox.clone(),
            outbox.reader()?,
            sink,
            metrics.clone(),
        );
        let ingress_phase = watch::Sender::new(Phase::Serving);
        let admin_phase = watch::Sender::new(Phase::Serving);
        let admin = Admin {
            outbox: outbox.clone(),
            reader: outbox.reader()?,
            metrics: metrics.clone(),
            sink: relay.state(),
            sink_name,
            max_bytes: config.outbox.max_bytes,
            ingress: ingress_phase.subscribe(),
            phase: admin_phase.subscribe(),
        };
        let ingress = Ingress::new(
            config.ingress.clone(),
            config.apps.clone(),
            config.naming.clone(),
            outbox.clone(),
            metrics,
        );
        Ok(App {
            config,
            outbox,
            workers,
            relay,
            ingress,
            admin,
            ingress_listener,
            admin_listener,
            tls,
            ingress_phase,
            admin_phase,
        })
    }

    /// Where callbacks are taken: the real port, also where 0 was asked for.
    pub fn ingress_address(&self) -> std::io::Result<SocketAddr> {
        self.ingress_listener.local_addr()
    }

    pub fn admin_address(&self) -> std::io::Result<SocketAddr> {
        self.admin_listener.local_addr()
    }

    /// Runs until `stop` completes, then stops in order. An error names the part that failed.
    pub async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let (ingress_address, admin_address) = (self.ingress_address()?, self.admin_address()?);
        let config = self.config;
        let ingress_server = Server {
            listener: self.ingress_listener,
            limits: Limits {
                max_connections: config.ingress.max_connections,
                header_timeout: config.ingress.header_timeout,
                idle_timeout: config.ingress.idle_timeout,
                half_close: true,
            },
            tls: self.tls,
            phase: self.ingress_phase.subscribe(),
            turned_away: Ingress::turned_away(),
        };
        let admin_server = Server {
            listener: self.admin_listener,
            limits: Limits {
                max_connections: config.admin.max_connections,
                header_timeout: config.ingress.header_timeout,
                idle_timeout: config.ingress.idle_timeout,
                half_close: false,
            },
            tls: None,
            phase: self.admin_phase.subscribe(),
            turned_away: r#"{"error":"too many connections"}"#.into(),
        };
        let (stop_relay, relay_stops) = watch::channel(false);
        let mut relay = Task::spawn("relay", on_own_thread("relay", self.relay.run(relay_stops)));
        let ingress = self.ingress.clone();
        let service = TowerToHyperService::new(self.ingress.router());
        let mut public = Task::spawn("public listener", async move {
            ingress_server.run(service, || ingress.count_turned_away()).await;
            Ok(())
        });
        let service = TowerToHyperService::new(self.admin.router());
        let mut private = Task::spawn("private listener", async move {
            admin_server.run(service, || ()).await;
            Ok(())
        });
        let is_https = config.ingress.tls.is_some();
        tracing::info!(address = %ingress_address, path = config.ingress.path, https = is_https, "listening for callbacks");
        tracing::info!(address = %admin_address, "private listener ready");

        let mut health = self.outbox.health();
        let failed = tokio::select! {
            () = stop => None,
            ended = relay.ended() => Some(ended),
            ended = public.ended() => Some(ended),
            ended = private.ended() => Some(ended),
            reason = poisoned(&mut health) => Some(anyhow::anyhow!("the outbox failed: {reason}")),
        };
        if let Some(error) = failed {
            // Who waits for an answer still gets it; the file stays as it is for the next start.
            self.ingress_phase.send_replace(Phase::Finishing);
            stop_relay.send_replace(true);
            for task in [&public, &relay] {
                let _ = timeout(GRACE, task.finished()).await;
            }
            return Err(error);
        }

        tracing::info!(
            "stopping: finishing the requests in progress, then delivering what is left"
        );
        if !config.ingress.drain_delay.is_zero() {
            self.ingress_phase.send_replace(Phase::LastCalls);
            sleep(config.ingress.drain_delay).await;
        }
        self.ingress_phase.send_replace(Phase::Closed);
        let in_progress = config.ingress.request_timeout + config.ingress.ack_deadline + GRACE;
        if timeout(LAST_REQUESTS, public.ended()).await.is_err() {
            self.ingress_phase.send_replace(Phase::Finishing);
            if timeout(in_progress, public.ended()).await.is_err() {
                tracing::warn!("cut off requests that did not end in time");
                self.ingress_phase.send_replace(Phase::Ended);
                public.ended().await;
            }
        }
        stop_relay.send_replace(true);
        let delivered = relay.result().await;
        self.admin_phase.send_replace(Phase::Closed);
        self.admin_phase.send_replace(Phase::Finishing);
        if timeout(GRACE, private.ended()).await.is_err() {
            self.admin_phase.send_replace(Phase::Ended);
            private.ended().await;
        }
        drop(self.outbox);
        tokio::task::spawn_blocking(|| self.workers.close()).await.context("closing the outbox")?;
        delivered?;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Completes when the outbox fails, with the reason.
async fn poisoned(health: &mut watch::Receiver<Health>) -> String {
    match health.wait_for(|health| matches!(health, Health::Poisoned(_))).await.as_deref() {
        Ok(Health::Poisoned(reason)) => reason.clone(),
        _ => "its writer ended unasked".into(),
    }
}

/// A part of the bridge that is not meant to end by itself: who does is named.
struct Task {
    name: &'static str,
    handle: JoinHandle<anyhow::Result<()>>,
}

impl Task {
    fn spawn(
        name: &'static str,
        body: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> Self {
        Task { name, handle: tokio::spawn(body) }
    }

    async fn result(&mut self) -> anyhow::Result<()> {
        match (&mut self.handle).await {
            Ok(result) => result.with_context(|| format!("the {} failed", self.name)),
            Err(error) => bail!("the {} panicked: {error}", self.name),
        }
    }

    /// Completes when it has ended, also if that was long ago.
    async fn finished(&self) {
        while !self.handle.is_finished() {
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ended(&mut self) -> anyhow::Error {
        match self.result().await {
            Ok(()) => anyhow::anyhow!("the {} ended unasked", self.name),
            Err(error) => error,
        }
    }
}

/// How long what still blocks in a client library may hold up the end of the thread that it ran for.
const LEFTOVERS: Duration = Duration::from_secs(1);

/// Runs a future that blocks now and then, and everything that it spawns, on a thread where it keeps
/// nobody else waiting.
async fn on_own_thread(
    name: &str,
    body: impl Future<Output = anyhow::Result<()>> + Send + 'static,
) -> anyhow::Result<()> {
    let (done, result) = tokio::sync::oneshot::channel();
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start a runtime")?;
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            let result = runtime.block_on(body);
            runtime.shutdown_timeout(LEFTOVERS);
            done.send(result)
        })
        .context("no thread to run on")?;
    result.await.context("it panicked")?
}

/// Says loudly what the operator has given up.
fn warn_of_weak_points(config: &Config) {
    for app in config.apps.iter().filter(|app| app.allow_unsigned) {
        tracing::warn!(
            sdk_app_id = app.sdk_app_id,
            "callbacks without a Sign are taken for this app (allow_unsigned): whoever reaches the \
             listener can publish events"
        );
    }
    match config.outbox.sync {
        Sync::Full => {}
        Sync::Normal => tracing::warn!(
            "outbox.sync = \"normal\": events that were answered OK in the last seconds before a power \
             cut or a crash of the host are lost"
        ),
        Sync::Off => tracing::warn!(
            "outbox.sync = \"off\": a power cut or a crash of the host loses events that were answered \
             OK, and may damage the outbox"
        ),
    }
    if !config.admin.listen.ip().is_loopback() {
        tracing::warn!(
            address = %config.admin.listen,
            "the private listener asks nobody who they are, and its address is public: keep others out \
             by other means"
        );
    }
}
