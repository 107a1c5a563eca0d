//! The composition root: builds everything, runs it, and stops it in order. Nothing here is global,
//! so several bridges can run in one process.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::admin::{Acts, Admin, Budget, Events, Readers};
use crate::callback::PLATFORM_WAITS;
use crate::ingress::{self, Apps, Ingress};
use crate::log::Log;
use crate::metrics::Metrics;
use crate::notify;
use crate::outbox::{self, Health, OpenError, Outbox, Workers};
use crate::passthrough::Passthrough;
use crate::relay::Relay;
use crate::reload::Reload;
use crate::requests::Requests;
use crate::server::{self, HttpService, Limits, Phase, Server};
use crate::settings::Settings;
use crate::sink::Sink;
use crate::spans::{self, Spans};
use crate::tasks::{Tasks, on_own_thread};
use crate::time::Clock;
use crate::tls;
use crate::version;

/// After the listener is closed, how long a kept-alive connection may still bring a request that is
/// already on its way: closing at once would cut it off. As long as the platform itself waits; ends early
/// when all connections are closed.
const LAST_REQUESTS: Duration = PLATFORM_WAITS;

/// How long requests in progress may run past their own deadlines.
const GRACE: Duration = Duration::from_secs(1);

/// How long a reader of the private listener may take nothing of what there is for it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections of the private listener that are kept free for probes of its health.
const SPARE_CONNECTIONS: usize = 8;

const PUBLIC: &str = "public listener";
const PRIVATE: &str = "private listener";
const RELAY: &str = "relay";
const TOKENS: &str = "watch over the token files";
const WATCHDOG: &str = "word to the watchdog";

/// A bridge that is built and ready to run.
pub struct App {
    settings: Settings,
    outbox: Outbox,
    workers: Workers,
    relay: Relay,
    log: Log,
    apps: Arc<Apps>,
    ingress: Arc<Ingress>,
    ingress_server: Server,
    ingress_phase: watch::Sender<Phase>,
    admin: Admin,
    admin_server: Server,
    admin_phase: watch::Sender<Phase>,
    exporter: spans::Exporter,
}

/// A running bridge.
struct Running {
    settings: Settings,
    outbox: Outbox,
    workers: Workers,
    tasks: Tasks,
    ingress_phase: watch::Sender<Phase>,
    admin_phase: watch::Sender<Phase>,
    stop_relay: watch::Sender<bool>,
    exporter: spans::Exporter,
}

impl App {
    /// Opens the outbox and binds both listeners. Nothing is served yet.
    pub async fn build(settings: Settings, log: Log) -> anyhow::Result<Self> {
        tracing::info!(version = version::NUMBER, commit = version::COMMIT, "topic-bridge starts");
        let (spans, exporter) = Spans::new(&settings.otlp)?;
        let sink = Sink::new(&settings.sink, &settings.terms(), spans.clone())?;
        settings.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
        let ingress_phase = watch::Sender::new(Phase::Serving);
        let admin_phase = watch::Sender::new(Phase::Serving);
        let sink_name = settings.sink.kind.name();
        let metrics = Arc::new(Metrics::new(sink_name));
        let ingress_server = ingress_server(&settings, &metrics, &ingress_phase).await?;
        let admin_server = admin_server(&settings, &admin_phase).await?;
        let (outbox, workers) = open_outbox(&settings, &sink, &metrics)?;
        let relay = relay(&settings, &outbox, sink, &metrics)?;
        let apps = Apps::new(settings.ingress.apps.clone()).map_err(|reason| anyhow!(reason))?;
        let passthrough = Passthrough::new(settings.passthrough.clone(), metrics.clone())?;
        let requests = Arc::new(Requests::new());
        let links = ingress::Links {
            apps: apps.clone(),
            outbox: outbox.clone(),
            sink: relay.state(),
            passthrough: passthrough.clone(),
            requests: requests.clone(),
            metrics: metrics.clone(),
            spans,
            see: see(&admin_server.listener)?,
        };
        let ingress = Ingress::new(settings.ingress.clone(), settings.event.clone(), links);
        let admin = Admin {
            acts: acts(&settings),
            outbox: outbox.clone(),
            reader: outbox.reader()?,
            events: Events::of(&outbox)?,
            readers: readers(&settings, &admin_phase),
            metrics,
            log: log.clone(),
            sink: relay.state(),
            refusals: relay.refusals(),
            passthrough,
            requests,
            sink_name,
            max_bytes: settings.outbox.max_bytes,
            ingress: ingress_phase.subscribe(),
            is_loopback: settings.admin.listen.ip().is_loopback(),
        };
        Ok(App {
            settings,
            outbox,
            workers,
            relay,
            log,
            apps,
            ingress,
            ingress_server,
            ingress_phase,
            admin,
            admin_server,
            admin_phase,
            exporter,
        })
    }

    /// Where callbacks are received: the real port, even if 0 was configured.
    pub fn ingress_address(&self) -> std::io::Result<SocketAddr> {
        self.ingress_server.listener.local_addr()
    }

    pub fn admin_address(&self) -> std::io::Result<SocketAddr> {
        self.admin_server.listener.local_addr()
    }

    /// What takes parts of the configuration up again.
    pub fn reload(&self) -> Reload {
        Reload::new(self.settings.clone(), self.apps.clone(), self.log.clone())
    }

    /// Runs until `stop` completes, then stops in order; stops immediately if `stop` returns an error. An
    /// error names the part that failed.
    pub async fn run(self, stop: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        let mut running = self.start()?;
        match running.end(stop).await {
            Ok(()) => running.stop().await,
            Err(error) => {
                running.give_up().await;
                Err(error)
            }
        }
    }

    fn start(self) -> anyhow::Result<Running> {
        let (ingress_address, admin_address) = (self.ingress_address()?, self.admin_address()?);
        let App { settings, outbox, workers, ingress_phase, admin_phase, exporter, .. } = self;
        let mut tasks = Tasks::default();
        let (stop_relay, relay_stops) = watch::channel(false);
        tasks.spawn(RELAY, on_own_thread(RELAY, self.relay.run(relay_stops)));
        let apps = self.apps;
        tasks.spawn(TOKENS, async move {
            apps.watch().await;
            Ok(())
        });
        let (server, ingress) = (self.ingress_server, self.ingress.clone());
        let service = TowerToHyperService::new(self.ingress.router());
        tasks.spawn(PUBLIC, async move {
            server.run(service, || ingress.count_turned_away()).await;
            Ok(())
        });
        let (server, service) = (self.admin_server, TowerToHyperService::new(self.admin.router()));
        tasks.spawn(PRIVATE, on_own_thread(PRIVATE, show(server, service)));
        let (path, is_https) = (&settings.ingress.path, settings.ingress.tls.is_some());
        tracing::info!(address = %ingress_address, path, https = is_https, "listening for callbacks");
        tracing::info!(address = %admin_address, "private listener ready");
        tasks.spawn(WATCHDOG, notify::keep_alive());
        notify::ready();
        Ok(Running {
            settings,
            outbox,
            workers,
            tasks,
            ingress_phase,
            admin_phase,
            stop_relay,
            exporter,
        })
    }
}

impl Running {
    /// Waits for the signal to stop. An error says why the bridge cannot go on.
    async fn end(&mut self, stop: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        let mut health = self.outbox.health();
        tokio::select! {
            biased; // name a failed part first
            error = self.tasks.first_end() => Err(error),
            reason = poisoned(&mut health) => Err(anyhow!("the outbox failed: {reason}")),
            stop = stop => stop,
        }
    }

    /// Clients that are waiting still get an answer; the file stays as it is for the next start.
    async fn give_up(mut self) {
        self.ingress_phase.send_replace(Phase::Finishing);
        self.stop_relay.send_replace(true);
        for name in [PUBLIC, RELAY] {
            let _ = timeout(GRACE, self.tasks.end_of(name)).await;
        }
    }

    /// Finishes the requests in progress, delivers what is left, and closes the outbox, in this order.
    async fn stop(mut self) -> anyhow::Result<()> {
        tracing::info!(
            "stopping: finishing the requests in progress, then delivering what is left"
        );
        notify::stopping();
        let listened = self.stop_listening().await;
        self.stop_relay.send_replace(true);
        let delivered = self.tasks.end_of(RELAY).await;
        self.stop_showing().await;
        drop(self.outbox);
        let (workers, exporter) = (self.workers, self.exporter);
        let closed = tokio::task::spawn_blocking(|| {
            workers.close();
            exporter.close();
        });
        closed.await.context("closing the outbox")?;
        listened.and(delivered)?;
        tracing::info!("stopped");
        Ok(())
    }

    async fn stop_listening(&mut self) -> anyhow::Result<()> {
        let config = &self.settings.ingress;
        if !config.drain_delay.is_zero() {
            self.ingress_phase.send_replace(Phase::LastCalls);
            sleep(config.drain_delay).await;
        }
        self.ingress_phase.send_replace(Phase::Closed);
        if let Ok(ended) = timeout(LAST_REQUESTS, self.tasks.end_of(PUBLIC)).await {
            return ended;
        }
        self.ingress_phase.send_replace(Phase::Finishing);
        let in_progress = config.request_timeout + config.ack_deadline + GRACE;
        if let Ok(ended) = timeout(in_progress, self.tasks.end_of(PUBLIC)).await {
            return ended;
        }
        tracing::warn!("cut off requests that did not end in time");
        self.ingress_phase.send_replace(Phase::Ended);
        self.tasks.end_of(PUBLIC).await
    }

    async fn stop_showing(&mut self) {
        self.admin_phase.send_replace(Phase::Closed);
        self.admin_phase.send_replace(Phase::Finishing);
        if timeout(GRACE, self.tasks.end_of(PRIVATE)).await.is_err() {
            self.admin_phase.send_replace(Phase::Ended);
            let _ = self.tasks.end_of(PRIVATE).await; // its result no longer matters
        }
    }
}

fn acts(settings: &Settings) -> Acts {
    Acts::new(&settings.admin, settings.event.clone(), settings.sink.kind.is_embedded())
}

fn readers(settings: &Settings, phase: &watch::Sender<Phase>) -> Readers {
    Readers { budget: Budget::new(settings.admin.max_buffer_bytes), phase: phase.subscribe() }
}

fn open_outbox(
    settings: &Settings,
    sink: &Sink,
    metrics: &Arc<Metrics>,
) -> Result<(Outbox, Workers), OpenError> {
    let limits = outbox::Limits {
        max_queued: settings.ingress.max_in_flight,
        slow: settings.ingress.ack_deadline,
        history_gives_way: !sink.needs_nobody(),
    };
    Outbox::open(&settings.outbox, limits, metrics.clone(), Clock::system())
}

fn relay(
    settings: &Settings,
    outbox: &Outbox,
    sink: Sink,
    metrics: &Arc<Metrics>,
) -> Result<Relay, OpenError> {
    let (config, reader) = (settings.relay.clone(), outbox.reader()?);
    Ok(Relay::new(config, outbox.clone(), reader, sink, metrics.clone()))
}

/// Where an operator sees the last requests.
fn see(admin: &TcpListener) -> anyhow::Result<String> {
    let address = admin.local_addr().context("admin.listen")?;
    Ok(format!("http://{address}/requests, or `topic-bridge tail --requests`"))
}

async fn ingress_server(
    settings: &Settings,
    metrics: &Arc<Metrics>,
    phase: &watch::Sender<Phase>,
) -> anyhow::Result<Server> {
    let config = &settings.ingress;
    let watch = |files| tls::watch(files, metrics.clone());
    let tls = config.tls.clone().map(watch).transpose().context("ingress.tls")?;
    Ok(Server {
        listener: bind(config.listen, "ingress.listen").await?,
        limits: Limits {
            max_connections: config.max_connections,
            spare_connections: 0,
            header_timeout: config.header_timeout,
            idle_timeout: config.idle_timeout,
            write_timeout: config.idle_timeout,
            half_close: true,
        },
        tls,
        phase: phase.subscribe(),
        turned_away: Ingress::turned_away(),
    })
}

async fn admin_server(settings: &Settings, phase: &watch::Sender<Phase>) -> anyhow::Result<Server> {
    Ok(Server {
        listener: bind(settings.admin.listen, "admin.listen").await?,
        limits: Limits {
            max_connections: settings.admin.max_connections,
            spare_connections: SPARE_CONNECTIONS,
            header_timeout: settings.ingress.header_timeout,
            idle_timeout: settings.ingress.idle_timeout,
            write_timeout: WRITE_TIMEOUT,
            half_close: false,
        },
        tls: None,
        phase: phase.subscribe(),
        turned_away: r#"{"error":"too many connections"}"#.into(),
    })
}

/// Runs the private listener on a runtime of its own, so that no reader delays an answer to a callback.
async fn show(mut server: Server, service: impl HttpService) -> anyhow::Result<()> {
    // A socket belongs to the runtime that it was bound on.
    server.listener = TcpListener::from_std(server.listener.into_std()?)?;
    server.run(service, || ()).await;
    Ok(())
}

async fn bind(address: SocketAddr, key: &'static str) -> anyhow::Result<TcpListener> {
    server::bind(address).await.context(key)
}

/// Completes when the outbox fails, with the reason.
async fn poisoned(health: &mut watch::Receiver<Health>) -> String {
    match health.wait_for(|health| matches!(health, Health::Poisoned(_))).await.as_deref() {
        Ok(Health::Poisoned(reason)) => reason.clone(),
        _ => "its writer ended unexpectedly".into(),
    }
}
