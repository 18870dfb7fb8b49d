//! The report as one HTML file, in a real browser: it asks nobody for anything, shows every picture, and fits a phone.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::support::{Needs, TempFolder, inconclusive};

const LAB: &str = env!("CARGO_BIN_EXE_lab");
const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// A folder beside the repository's records.
struct Scratch(TempFolder);

impl Scratch {
    fn new() -> Scratch {
        let folder = TempFolder::new("html");
        symlink(Path::new(REPOSITORY).join("experiments/record"), folder.file("record")).unwrap();
        Scratch(folder)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.file(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// The report of the repository's records.
    fn report(&self) -> String {
        let path = self.0.file("report.html");
        let lab = Command::new(LAB)
            .args(["--root", REPOSITORY, "report", "--out"])
            .arg(self.0.path())
            .arg("--html")
            .arg(&path)
            .output()
            .unwrap();
        assert!(lab.status.success(), "{}", String::from_utf8_lossy(&lab.stderr));
        fs::read_to_string(path).unwrap()
    }

    fn pictures(&self) -> usize {
        let files = fs::read_dir(self.0.file("results")).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "svg")).count()
    }
}

fn browser() -> Option<&'static str> {
    let is_there =
        |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(is_there)
}

/// Runs in the page, and tells the page around it what it found.
const PROBE: &str = r#"<script>
addEventListener('load', () => {
  const page = document.documentElement;
  const drawn = [...document.querySelectorAll('svg')].filter((svg) => svg.getBoundingClientRect().height > 50);
  document.querySelector('svg g').focus();
  const table = document.querySelector('details table');
  const first = () => table.tBodies[0].rows[0].textContent;
  const button = table.querySelector('th:last-child button');
  button.click();
  const smallest = first();
  button.click();
  parent.postMessage([
    `wider by ${page.scrollWidth - page.clientWidth}`, `width ${innerWidth}`, `pictures ${drawn.length}`,
    `requests ${performance.getEntriesByType('resource').length}`,
    `value ${document.getElementById('value').textContent.includes('http://127.0.0.1')}`, `sorted ${smallest !== first()}`,
  ].join('; '), '*');
});
</script></body>"#;

/// As wide as a phone.
const FRAME: &str = r#"<body><iframe src="probed.html" width="390" height="844" style="border:0"></iframe>
<script>addEventListener('message', (event) => { document.body.append(event.data); });</script></body>"#;

#[test]
fn the_report_is_one_file_that_a_browser_shows_in_full_on_a_phone_too() {
    let scratch = Scratch::new();
    let report = scratch.report();
    assert!(report.len() < 2_000_000, "{} bytes", report.len());
    let Some(browser) = browser() else { return inconclusive(Needs::Tool("chromium"), "not installed") };
    scratch.write("probed.html", &report.replace("</body>", PROBE));
    let frame = scratch.write("frame.html", FRAME);
    let output = Command::new("timeout")
        .args(["120", browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"])
        .arg("--virtual-time-budget=20000")
        .arg(format!("--user-data-dir={}", scratch.0.file("profile")))
        .arg(format!("file://{frame}"))
        .output()
        .unwrap();
    let (seen, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let console: Vec<&str> = told.lines().filter(|line| line.contains(":CONSOLE:")).collect();
    assert_eq!(console, [""; 0]);
    let expected =
        format!("wider by 0; width 390; pictures {}; requests 0; value true; sorted true", scratch.pictures());
    assert!(seen.contains(&expected), "not {expected:?}: {seen}\n{told}");
}
