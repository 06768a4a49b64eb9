//! A model's chat template: Jinja as Hugging Face's `apply_chat_template` runs it.
//!
//! Pure but for a template's own loops, which are limited: steps, recursion, output. What a template
//! refuses by `raise_exception`, and what it gets wrong, is an error that costs accuracy, never a request.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, context};

use super::python::{self, JsonStyle};

/// Instructions of one rendering. Real templates take 50 to 400 a message.
const FUEL: u64 = 2_000_000;
/// Instructions for the three messages of a trial.
const FUEL_TRIAL: u64 = 100_000;
/// Calls and includes nest so deep at most.
const RECURSION_MAX: usize = 64;
/// A template's source. The longest known has 20 kB.
const SOURCE_BYTES_MAX: usize = 1 << 20;
/// Between two levels of `tojson(indent=...)`.
const INDENT_MAX: usize = 16;

const NAME: &str = "chat";

/// Why nothing was rendered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Its source is no template.
    #[error("the chat template cannot be read: {0}; put one that Jinja reads there")]
    Source(String),
    /// It called `raise_exception`: the engine will refuse the request, too.
    #[error("the chat template refuses this conversation: {0}")]
    Raised(String),
    /// It runs for too long or says too much.
    #[error("the chat template exceeds a limit: {0}")]
    Limit(String),
    /// Anything else.
    #[error("the chat template fails: {0}")]
    Failed(String),
}

impl TemplateError {
    /// For metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            TemplateError::Source(_) => "template_source",
            TemplateError::Raised(_) => "template_raised",
            TemplateError::Limit(_) => "template_limit",
            TemplateError::Failed(_) => "template_failed",
        }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    trial: Environment<'static>,
    now_s: Arc<AtomicU64>,
    wants_parts: bool,
}

impl Template {
    /// Compiles `source`.
    ///
    /// # Errors
    /// [`TemplateError::Source`].
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(TemplateError::Source(format!("longer than {SOURCE_BYTES_MAX} bytes")));
        }
        let now_s = Arc::default();
        let environment = environment(source, FUEL, &now_s)?;
        let trial = environment_for_trial(&environment);
        Ok(Template { wants_parts: wants_parts(source), environment, trial, now_s })
    }

    /// Whether it goes through the parts of a message's content, so that engines hand it lists, not strings.
    pub fn wants_parts(&self) -> bool {
        self.wants_parts
    }

    /// Renders with `variables`, a map, at the time `now_s`; at most `bytes_max`.
    ///
    /// # Errors
    /// All but [`TemplateError::Source`].
    pub fn render(
        &self,
        variables: Value,
        now_s: u64,
        bytes_max: usize,
    ) -> Result<String, TemplateError> {
        self.now_s.store(now_s, Relaxed);
        run(&self.environment, variables, bytes_max)
    }

    /// A short conversation, to find out early whether it ends at all. What it refuses is its right.
    ///
    /// # Errors
    /// [`TemplateError::Limit`].
    pub fn try_out(&self, bytes_max: usize) -> Result<(), TemplateError> {
        let says = |role: &str| context! { role => role, content => "x" };
        let messages = vec![says("user"), says("assistant"), says("user")];
        let tools: Option<Value> = None;
        let variables = context! { messages, tools, add_generation_prompt => true, bos_token => "", eos_token => "" };
        match run(&self.trial, variables, bytes_max) {
            Err(error @ TemplateError::Limit(_)) => Err(error),
            _ => Ok(()),
        }
    }
}

fn run(
    environment: &Environment<'_>,
    variables: Value,
    bytes_max: usize,
) -> Result<String, TemplateError> {
    let failed = |error: Error| match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::Limit("too many steps".to_owned()),
        ErrorKind::WriteFailure => TemplateError::Limit(format!("more than {bytes_max} bytes")),
        _ => match error.detail().and_then(|detail| detail.strip_prefix(RAISED)) {
            Some(message) => TemplateError::Raised(message.to_owned()),
            None => TemplateError::Failed(error.to_string()),
        },
    };
    let template = environment.get_template(NAME).map_err(failed)?;
    let mut out = Bounded { bytes: Vec::new(), bytes_max };
    template.render_captured_to(variables, &mut out).map_err(failed)?;
    // It was written as strings.
    String::from_utf8(out.bytes).map_err(|error| TemplateError::Failed(error.to_string()))
}

struct Bounded {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Write for Bounded {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + part.len() > self.bytes_max {
            return Err(std::io::Error::other("too long"));
        }
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Marks what a template itself said.
const RAISED: &str = "raised: ";

fn environment(
    source: &str,
    fuel: u64,
    now_s: &Arc<AtomicU64>,
) -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| TemplateError::Source(error.to_string()))?);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_fuel(Some(fuel));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, _, value| {
        if let Some(text) = value.as_str() {
            return Ok(out.write_str(text)?);
        }
        let mut text = String::new();
        python::write_str(&mut text, value)?;
        Ok(out.write_str(&text)?)
    });
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
    });
    let clock = Arc::clone(now_s);
    environment.add_function("strftime_now", move |format: String| {
        python::strftime(&format, clock.load(Relaxed)).ok_or_else(|| {
            Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format}) is not known"))
        })
    });
    let source = without_generation_tags(source);
    environment
        .add_template_owned(NAME, source)
        .map_err(|error| TemplateError::Source(error.to_string()))?;
    Ok(environment)
}

fn environment_for_trial(environment: &Environment<'static>) -> Environment<'static> {
    let mut trial = environment.clone();
    trial.set_fuel(Some(FUEL_TRIAL));
    trial
}

/// `tojson` as Hugging Face defines it: `json.dumps` that leaves HTML alone.
fn tojson(_: &State<'_, '_>, value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let mut style = JsonStyle::new(indent.map(|indent| indent.min(INDENT_MAX)));
    style.ascii_only = kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    style.sort_keys = kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    if let Some(separators) = kwargs.get::<Option<Vec<String>>>("separators")?
        && let [item, key] = separators.as_slice()
    {
        style.item_separator.clone_from(item);
        style.key_separator.clone_from(key);
    }
    kwargs.assert_all_used()?;
    Ok(Value::from(python::json(value, &style)?))
}

/// `{% generation %}` marks for training what an assistant said; it prints its inside.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, behind) = tag.split_at(end + 2);
        let inner = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        match inner {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// Whether some loop goes through a message's content, directly or by a name it was given. Engines
/// look for the same in the syntax tree.
fn wants_parts(source: &str) -> bool {
    let is_content = |expression: &str| {
        [".content", "['content']", "[\"content\"]"].iter().any(|name| {
            expression.match_indices(name).any(|(at, _)| {
                let next = expression[at + name.len()..].chars().next();
                next.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != '.' && c != '[')
            })
        })
    };
    let tags = || {
        source.match_indices("{%").filter_map(|(at, _)| {
            let inner = &source[at + 2..];
            Some(inner[..inner.find("%}")?].trim_matches(['-', '+']).trim())
        })
    };
    let aliases: Vec<&str> = tags()
        .filter_map(|tag| tag.strip_prefix("set ")?.split_once('='))
        .filter(|(_, value)| is_content(value.trim()) && !value.contains(['+', '~', '|', '(']))
        .map(|(name, _)| name.trim())
        .collect();
    tags()
        .filter_map(|tag| tag.strip_prefix("for ")?.split_once(" in "))
        .any(|(_, over)| is_content(over.trim()) || aliases.contains(&over.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, variables: Value) -> Result<String, TemplateError> {
        Template::new(source)?.render(variables, 1_721_984_703, 10_000)
    }

    #[test]
    fn the_dialect_is_hugging_faces() {
        for (source, expected) in [
            ("{% if true %}\n  a\n{% endif %}\nb\n", "  a\nb"),
            (
                "{{ {'b': 1, 'a': [true, none, 'é<']} | tojson }}",
                r#"{"b": 1, "a": [true, null, "é<"]}"#,
            ),
            ("{{ [1, 2] | tojson(indent=2) }}", "[\n  1,\n  2\n]"),
            ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
            ("{{ ' x '.strip() }}{{ 'a,b'.split(',')[-1] }}", "xb"),
            ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "a1"),
            (
                "{% for x in range(9) %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}",
                "01",
            ),
            (
                "{% set ns = namespace(n=0) %}{% for x in [1, 2] %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}",
                "3",
            ),
            ("{%- generation -%} a {%- endgeneration -%} b", "ab"),
            ("{{ true }} {{ none }} {{ 1.0 }} {{ {'a': ['b']} }}", "True None 1.0 {'a': ['b']}"),
            ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a') }}", "<a>"),
            ("{{ undefined_name }}{{ [1,2,3][::-1] }}", "[3, 2, 1]"),
        ] {
            assert_eq!(render(source, context! {}).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn what_throws_loops_or_explodes_is_an_error() {
        let error = |source: &str| render(source, context! {}).unwrap_err();
        assert_eq!(error("{{ raise_exception('no') }}"), TemplateError::Raised("no".to_owned()));
        let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(matches!(error(nested), TemplateError::Limit(_)));
        let endless = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
        assert!(matches!(error(endless), TemplateError::Failed(_)));
        let long = "{% for a in range(9999) %}0123456789{% endfor %}";
        assert!(matches!(error(long), TemplateError::Limit(_)));
        for source in ["{{ 'x' * 9999999999 }}", "{{ [1] | nothing }}", "{{ a.b.c }}"] {
            assert!(matches!(error(source), TemplateError::Failed(_)), "{source}");
        }
        let deep = ["{{ ", &"(".repeat(100_000), "1", &")".repeat(100_000), " }}"].concat();
        assert!(matches!(Template::new(&deep), Err(TemplateError::Source(_))));
        let deep = ["{% if 1 %}".repeat(50_000), "{% endif %}".repeat(50_000)].concat();
        assert!(matches!(Template::new(&deep), Err(TemplateError::Source(_))));
        for source in ["{% if %}", "{{ 'a' ", "{% for x in y %}", "{% include %}"] {
            assert!(matches!(Template::new(source), Err(TemplateError::Source(_))), "{source}");
        }
        assert!(matches!(
            Template::new(nested).unwrap().try_out(10_000),
            Err(TemplateError::Limit(_))
        ));
        assert_eq!(Template::new("{{ raise_exception('no') }}").unwrap().try_out(10_000), Ok(()));
    }

    #[test]
    fn templates_that_go_through_parts_are_found() {
        for (source, expected) in [
            ("{% for part in message['content'] %}{% endfor %}", true),
            ("{%- for part in message.content -%}{% endfor %}", true),
            ("{% set content = message.content %}{% for c in content %}{% endfor %}", true),
            ("{% for m in messages %}{{ m.content | trim }}{% endfor %}", false),
            ("{% set content = message.content %}{{ content }}", false),
            ("{% for c in message.content.split('x') %}{% endfor %}", false),
            ("{% for t in message.tool_calls %}{% endfor %}", false),
        ] {
            assert_eq!(wants_parts(source), expected, "{source}");
        }
    }
}
