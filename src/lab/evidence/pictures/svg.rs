//! SVG elements as text. Colours stand in classes, with other values where a page is dark; shapes and dashes tell the
//! same apart where there is no colour.

/// The width of every picture.
pub const WIDTH: f64 = 880.0;

/// Elements of one picture, drawn from the back to the front.
pub struct Svg {
    title: String,
    body: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// Colours of this many series; then they begin again.
pub const COLOURS: usize = 8;

/// GitHub's two pages, and colours whose lightness differs on both.
pub const STYLE: &str = "\
.paper{fill:#ffffff}.ink{fill:#1f2328}.soft{fill:#59636e}.rule{stroke:#59636e}.grid{stroke:#d1d9e0}.band{fill:#d1d9e0}
.f0{fill:#0550ae}.f1{fill:#b04a00}.f2{fill:#117a4c}.f3{fill:#9b2c7d}.f4{fill:#7a5c00}.f5{fill:#2a7f9e}.f6{fill:#57606a}.f7{fill:#6a3fa0}
.s0{stroke:#0550ae}.s1{stroke:#b04a00}.s2{stroke:#117a4c}.s3{stroke:#9b2c7d}.s4{stroke:#7a5c00}.s5{stroke:#2a7f9e}.s6{stroke:#57606a}.s7{stroke:#6a3fa0}
@media (prefers-color-scheme:dark){
.paper{fill:#0d1117}.ink{fill:#e6edf3}.soft{fill:#9198a1}.rule{stroke:#9198a1}.grid{stroke:#2f353d}.band{fill:#2f353d}
.f0{fill:#79c0ff}.f1{fill:#ffa657}.f2{fill:#56d364}.f3{fill:#f5a3dd}.f4{fill:#e3b341}.f5{fill:#8be9fd}.f6{fill:#b1bac4}.f7{fill:#d2a8ff}
.s0{stroke:#79c0ff}.s1{stroke:#ffa657}.s2{stroke:#56d364}.s3{stroke:#f5a3dd}.s4{stroke:#e3b341}.s5{stroke:#8be9fd}.s6{stroke:#b1bac4}.s7{stroke:#d2a8ff}
}
text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif}.title{font-weight:600;font-size:15px}.small{font-size:11px}
.name{font-weight:600}.line{fill:none;stroke-width:2}.thin{stroke-width:1}.thick{stroke-width:2.5}.run{fill-opacity:.55}.bar{fill-opacity:.3}";

impl Svg {
    /// A picture that has only its title, at the top.
    pub fn new(title: &str) -> Svg {
        let mut svg = Svg { title: title.to_string(), body: String::new() };
        svg.text((16.0, 24.0), Anchor::Start, "ink title", title);
        svg
    }

    pub fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let place = format!("x=\"{}\" y=\"{}\"", number(x), number(y));
        self.body += &format!("<text {place}{anchor} class=\"{class}\">{}</text>\n", escaped(text));
    }

    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let [x1, y1, x2, y2] = [from.0, from.1, to.0, to.1].map(number);
        self.body += &format!("<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" class=\"{class}\"/>\n");
    }

    pub fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), class: &str) {
        let [x, y, width, height] = [x, y, width, height].map(number);
        self.body += &format!("<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" class=\"{class}\"/>\n");
    }

    /// A line through these points, dashed as its series is.
    pub fn curve(&mut self, points: &[(f64, f64)], series: usize) {
        const DASHES: [&str; 4] =
            ["", " stroke-dasharray=\"7 3\"", " stroke-dasharray=\"2 3\"", " stroke-dasharray=\"9 3 2 3\""];
        self.polyline(points, &format!("line {}", stroke(series)), DASHES[series % DASHES.len()]);
    }

    /// Upright lines from `top` to `bottom`, as one element.
    pub fn uprights(&mut self, places: &[f64], (top, bottom): (f64, f64), class: &str) {
        let [top, bottom] = [top, bottom].map(number);
        let path: String = places.iter().map(|x| format!("M{},{top}V{bottom}", number(*x))).collect();
        self.body += &format!("<path d=\"{path}\" class=\"{class}\"/>\n");
    }

    /// `dash`: empty, or the attribute with a blank before it.
    pub fn polyline(&mut self, points: &[(f64, f64)], class: &str, dash: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{},{}", number(*x), number(*y))).collect();
        self.body += &format!("<polyline points=\"{}\" class=\"{class}\"{dash}/>\n", points.join(" "));
    }

    /// What theory expects.
    pub fn expected(&mut self, points: &[(f64, f64)]) {
        self.polyline(points, "line rule", " stroke-dasharray=\"1 4\"");
    }

    /// One run of a series.
    pub fn dot(&mut self, (x, y): (f64, f64), series: usize) {
        const R: f64 = 3.2;
        let class = format!("run {}", fill(series));
        let [left, right, top, bottom, x, y] = [x - R, x + R, y - R, y + R, x, y].map(number);
        self.body += &match series % 4 {
            0 => format!("<circle cx=\"{x}\" cy=\"{y}\" r=\"{R}\" class=\"{class}\"/>\n"),
            1 => format!("<path d=\"M{left},{top}H{right}V{bottom}H{left}Z\" class=\"{class}\"/>\n"),
            2 => format!("<path d=\"M{x},{top}L{right},{bottom}H{left}Z\" class=\"{class}\"/>\n"),
            _ => format!("<path d=\"M{x},{top}L{right},{y} {x},{bottom} {left},{y}Z\" class=\"{class}\"/>\n"),
        };
    }

    /// A figure from elsewhere.
    pub fn published(&mut self, (x, y): (f64, f64)) {
        let [left, right, top, bottom, x, y] = [x - 6.0, x + 6.0, y - 6.0, y + 6.0, x, y].map(number);
        let path = format!("M{x},{top}L{right},{y} {x},{bottom} {left},{y}Z");
        self.body += &format!("<path d=\"{path}\" class=\"line rule\"/>\n");
    }

    /// Begins what one row has drawn. Its text is shown when a reader points at it, and read aloud.
    pub fn open(&mut self, title: &str) {
        self.body += &format!("<g tabindex=\"0\"><title>{}</title>\n", escaped(title));
    }

    pub fn close(&mut self) {
        self.body += "</g>\n";
    }

    pub fn finish(self, height: f64, description: &str) -> String {
        let (width, height) = (number(WIDTH), number(height));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\">\n<title>{}</title>\n<desc>{}</desc>\n\
             <style>\n{STYLE}\n</style>\n<rect width=\"{width}\" height=\"{height}\" class=\"paper\"/>\n{}</svg>\n",
            escaped(&self.title),
            escaped(description),
            self.body
        )
    }
}

/// The class that fills with the colour of a series.
pub fn fill(series: usize) -> String {
    format!("f{}", series % COLOURS)
}

pub fn stroke(series: usize) -> String {
    format!("s{}", series % COLOURS)
}

/// How wide a text of the usual size is, roughly: nobody has the reader's font here.
pub fn width_of(text: &str) -> f64 {
    7.0 * text.chars().count() as f64
}

/// Tenths of a pixel are enough.
fn number(value: f64) -> String {
    let text = format!("{value:.1}");
    let text = text.strip_suffix(".0").unwrap_or(&text);
    if text == "-0" { "0".to_string() } else { text.to_string() }
}

pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
