//! Chromium without a window, driven by its DevTools protocol over its standard input and output: a message is JSON
//! with a zero behind it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bridge::eventually;

pub(crate) struct Browser {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    session: Option<Value>,
    sent: u64,
    has_loaded: bool,
    /// What the browser had to say about the page: exceptions, refusals, the console.
    pub(crate) complaints: Vec<String>,
    _profile: TempDir,
}

impl Browser {
    pub(crate) fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        // The protocol's pipes have the numbers 3 and 4.
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" 3<&0 4>&1 0</dev/null 1>&2", "sh", "chromium"]);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        command.args(["--remote-debugging-pipe", "--no-first-run", "--disable-extensions"]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("chromium is installed: see tests/browser/install");
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut browser = Browser {
            child,
            input,
            output: BufReader::new(output),
            session: None,
            sent: 0,
            has_loaded: false,
            complaints: Vec::new(),
            _profile: profile,
        };
        let id = eventually("the browser has a page", || {
            let targets = browser.call("Target.getTargets", json!({}));
            let mut targets = targets["targetInfos"].as_array().unwrap().iter();
            Some(targets.find(|target| target["type"] == "page")?["targetId"].clone())
        });
        let attached =
            browser.call("Target.attachToTarget", json!({ "targetId": id, "flatten": true }));
        browser.session = Some(attached["sessionId"].clone());
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Opens a page, and waits until it is there: what is asked before that is asked of another.
    pub(crate) fn open(&mut self, url: &str) {
        self.has_loaded = false;
        self.call("Page.navigate", json!({ "url": url }));
        while !self.has_loaded {
            self.read();
        }
        self.becomes("document.querySelector('#status') !== null");
    }

    pub(crate) fn looks(&mut self, width: u32, scheme: &str) {
        let size =
            json!({ "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    pub(crate) fn press(&mut self, key: &str, code: u32, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let mut event =
                json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code });
            if kind == "keyDown" && !text.is_empty() {
                event["text"] = json!(text);
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// The value of a JavaScript expression in the page.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let mut result = self
            .call("Runtime.evaluate", json!({ "expression": expression, "returnByValue": true }));
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].take()
    }

    pub(crate) fn becomes(&mut self, expression: &str) {
        let mut body = Value::Null;
        for _ in 0..600 {
            if self.value(expression) == true {
                return;
            }
            body = self.value("document.body.innerText");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("never: {expression}\n{}\n{:?}", body.as_str().unwrap(), self.complaints);
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.sent += 1;
        let mut message = json!({ "id": self.sent, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.clone();
        }
        self.input.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut message = self.read();
            if message["id"] == self.sent {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].take();
            }
        }
    }

    /// The next message: an answer, or an event, of which some are noted.
    fn read(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.output.read_until(0, &mut bytes).unwrap();
        assert_eq!(bytes.pop(), Some(0), "the browser ended");
        let message: Value = serde_json::from_slice(&bytes).unwrap();
        match message["method"].as_str() {
            Some("Page.loadEventFired") => self.has_loaded = true,
            Some("Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded") => {
                self.complaints.push(message["params"].to_string());
            }
            _ => {}
        }
        message
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
