//! The command line, as data. Reads no environment and starts nothing.

use crate::failure::Failure;
use crate::node::Options;

/// What the user asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Print the commands.
    Help,
    /// Bring the node up.
    Up(Options),
    /// Stop it.
    Down,
    /// Say what runs.
    Status,
    /// Run the tests, all or one stage.
    Test {
        /// The long stages too.
        full: bool,
        /// Name of the only stage wanted.
        only: Option<String>,
    },
    /// Run the proxy benchmark.
    Bench {
        /// For the benchmark itself.
        flags: Vec<String>,
    },
}

/// Engines one `up` may start: their ports are 100.
const REPLICAS_MAX: u32 = 100;

/// Reads the arguments behind `cargo xtask`.
pub fn parse(arguments: &[String]) -> Result<Command, Failure> {
    let Some((name, rest)) = arguments.split_first() else {
        return Ok(Command::Help);
    };
    let (command, allowed): (_, &[&str]) = match name.as_str() {
        "help" | "--help" | "-h" => (Command::Help, &[]),
        "up" => (Command::Up(Options::default()), &["--recipe", "--replicas", "--port-offset"]),
        "down" => (Command::Down, &[]),
        "status" => (Command::Status, &[]),
        "test" => (Command::Test { full: false, only: None }, &["--full", "--only"]),
        // What follows is the benchmark's own to judge.
        "bench" => return Ok(bench(rest)),
        _ => {
            return Err(Failure::new(format!(
                "unknown command `{name}`; `cargo xtask help` lists them"
            )));
        }
    };
    fill(command, name, allowed, rest)
}

fn bench(rest: &[String]) -> Command {
    if rest.first().is_some_and(|first| matches!(first.as_str(), "--help" | "-h")) {
        return Command::Help;
    }
    let flags = rest.iter().filter(|word| *word != "--").cloned().collect();
    Command::Bench { flags }
}

fn fill(
    mut command: Command,
    name: &str,
    allowed: &[&str],
    rest: &[String],
) -> Result<Command, Failure> {
    let mut rest = rest.iter();
    while let Some(argument) = rest.next() {
        let (key, inline) = match argument.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (argument.as_str(), None),
        };
        if matches!(key, "--help" | "-h") {
            return Ok(Command::Help);
        }
        if !allowed.contains(&key) {
            let known =
                if allowed.is_empty() { "no options".to_owned() } else { allowed.join(", ") };
            return Err(Failure::new(format!(
                "`{name}` takes {known}; `{argument}` is none of them"
            )));
        }
        if let Command::Test { full, .. } = &mut command
            && key == "--full"
        {
            if inline.is_some() {
                return Err(Failure::new("`--full` takes no value: write --full alone"));
            }
            *full = true;
            continue;
        }
        let value = match inline.or_else(|| rest.next().map(String::as_str)) {
            Some(value) if !value.is_empty() => value,
            _ => return Err(Failure::new(format!("`{key}` needs a value: {key} VALUE"))),
        };
        match &mut command {
            Command::Up(options) if key == "--recipe" => value.clone_into(&mut options.recipe),
            Command::Up(options) if key == "--replicas" => {
                options.replicas = Some(number(key, value, 1, REPLICAS_MAX)?);
            }
            Command::Up(options) => {
                let offset = number(key, value, 0, u32::from(Options::PORT_OFFSET_MAX))?;
                options.port_offset = u16::try_from(offset).unwrap_or(Options::PORT_OFFSET_MAX);
            }
            Command::Test { only, .. } => *only = Some(value.to_owned()),
            Command::Help | Command::Down | Command::Status | Command::Bench { .. } => {}
        }
    }
    Ok(command)
}

fn number(key: &str, value: &str, least: u32, most: u32) -> Result<u32, Failure> {
    match value.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(Failure::new(format!("`{key} {value}`: use a number from {least} to {most}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&words).map_err(|failure| failure.to_string())
    }

    #[test]
    fn up_without_options_is_the_real_engine() {
        assert_eq!(parsed("up"), Ok(Command::Up(Options::default())));
        assert_eq!(Options::default().recipe, "smollm2-135m/llama-cpp/cpu");
    }

    #[test]
    fn options_are_read_with_a_space_or_an_equals_sign() {
        let wanted = Options { recipe: "a/b/c".to_owned(), replicas: Some(2), port_offset: 1000 };
        assert_eq!(
            parsed("up --recipe a/b/c --replicas=2 --port-offset 1000"),
            Ok(Command::Up(wanted))
        );
        let test = |full, only: &str| Ok(Command::Test { full, only: Some(only.to_owned()) });
        assert_eq!(parsed("test --only fmt"), test(false, "fmt"));
        assert_eq!(parsed("test --full --only=fmt"), test(true, "fmt"));
        assert_eq!(parsed("test --full"), Ok(Command::Test { full: true, only: None }));
    }

    #[test]
    fn the_benchmark_gets_its_flags() {
        let bench = |flags: &[&str]| {
            Ok(Command::Bench { flags: flags.iter().map(|flag| (*flag).to_owned()).collect() })
        };
        assert_eq!(parsed("bench"), bench(&[]));
        assert_eq!(parsed("bench -- --soak 1000"), bench(&["--soak", "1000"]));
        assert_eq!(parsed("bench --peers"), bench(&["--peers"]));
        assert_eq!(parsed("bench --help"), Ok(Command::Help));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_the_way_out() {
        for (line, part) in [
            ("upp", "cargo xtask help"),
            ("down --force", "no options"),
            ("up --replicas 0", "1 to 100"),
            ("up --port-offset 60000", "0 to"),
            ("up --recipe", "needs a value"),
            ("up --full", "none of them"),
            ("test --full=yes", "takes no value"),
            ("up --recipes x", "--port-offset"),
        ] {
            let said = parsed(line).unwrap_err();
            assert!(said.contains(part), "{line}: {said}");
        }
    }
}
