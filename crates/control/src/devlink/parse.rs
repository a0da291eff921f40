//! Words as devlink commands.
//!
//! Options may be given in any order, and the last of a kind counts, as with devlink(8). Where a verb may be left out,
//! `show` is meant.

use eswitch::devlink::InlineMode;
use eswitch::{FunctionChange, MacAddr, Mode, SfNum};

use super::{
    CONFIGURATION_MODES, DevlinkCommand, DevlinkHandle, DevlinkOption, DevlinkVerb, ENCAP_MODES, ESW_MULTIPORT,
    ESWITCH_MODES, FUNCTION_STATES, HandlePart, INLINE_MODES, PCI_SF, ParamValue, ROCE, RUNTIME,
};
use crate::command::{Command, EswitchOption};
use crate::query::{Query, Request};
use crate::reader::{WordError, Words};

/// What a verb can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Nothing,
    Device,
    DeviceOrAll,
    Port,
    PortOrAll,
    PortOrNode,
    PortOrNodeOrAll,
}

/// Which of a verb's options must be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Required {
    None,
    One,
    All,
    /// All of them if there is a handle, and none otherwise.
    AllOfOne,
}

/// A verb, and what may follow it.
struct Form {
    verb: DevlinkVerb,
    subject: Subject,
    options: &'static [&'static str],
    required: Required,
    /// Whether the last word of the verb may be left out.
    is_default: bool,
    does: &'static str,
}

const fn form(verb: DevlinkVerb, subject: Subject, does: &'static str) -> Form {
    Form { verb, subject, options: &[], required: Required::None, is_default: false, does }
}

const RATE_OPTIONS: &[&str] = &["tx_share", "tx_max", "tx_priority", "tx_weight", "parent", "noparent"];

/// Every command that can be parsed.
const FORMS: &[Form] = &[
    Form { is_default: true, ..form(DevlinkVerb::DevShow, Subject::DeviceOrAll, "list devices") },
    Form {
        options: &["mode", "inline-mode", "encap-mode"],
        required: Required::One,
        ..form(DevlinkVerb::EswitchSet, Subject::Device, "change the E-Switch's mode")
    },
    form(DevlinkVerb::EswitchShow, Subject::Device, "show the E-Switch's mode"),
    Form {
        options: &["netns", "action"],
        ..form(DevlinkVerb::DevReload, Subject::Device, "unbind the device from its driver and bind it again")
    },
    Form {
        options: &["name"],
        required: Required::AllOfOne,
        is_default: true,
        ..form(DevlinkVerb::ParamShow, Subject::DeviceOrAll, "show parameters")
    },
    Form {
        options: &["name", "value", "cmode"],
        required: Required::All,
        ..form(DevlinkVerb::ParamSet, Subject::Device, "set a parameter")
    },
    form(DevlinkVerb::DevInfo, Subject::DeviceOrAll, "show drivers and versions"),
    Form { is_default: true, ..form(DevlinkVerb::PortShow, Subject::PortOrAll, "show ports") },
    Form {
        options: &["flavour", "pfnum", "sfnum", "controller"],
        ..form(DevlinkVerb::PortAdd, Subject::Device, "add an SF")
    },
    form(DevlinkVerb::PortDel, Subject::Port, "delete an SF"),
    Form {
        options: &["hw_addr", "roce", "state"],
        required: Required::One,
        ..form(DevlinkVerb::FunctionSet, Subject::Port, "change the function behind a port")
    },
    Form { is_default: true, ..form(DevlinkVerb::RateShow, Subject::PortOrNodeOrAll, "show rates") },
    Form {
        options: RATE_OPTIONS,
        ..form(DevlinkVerb::RateSet, Subject::PortOrNode, "set the rate of a function or of a group")
    },
    Form { options: RATE_OPTIONS, ..form(DevlinkVerb::RateAdd, Subject::PortOrNode, "add a group of rates") },
    form(DevlinkVerb::RateDel, Subject::PortOrNode, "delete a group of rates"),
    Form {
        options: &["reporter"],
        required: Required::AllOfOne,
        is_default: true,
        ..form(DevlinkVerb::HealthShow, Subject::DeviceOrAll, "show health reporters")
    },
    Form {
        options: &["reporter"],
        required: Required::All,
        ..form(DevlinkVerb::HealthDiagnose, Subject::Device, "show what a reporter knows")
    },
    Form {
        options: &["reporter"],
        required: Required::All,
        ..form(DevlinkVerb::HealthRecover, Subject::Device, "try again what has failed")
    },
    Form {
        is_default: true,
        ..form(DevlinkVerb::MonitorAll, Subject::Nothing, "print events of devices, ports, parameters and reporters")
    },
    form(DevlinkVerb::MonitorDev, Subject::Nothing, "print events of devices"),
    form(DevlinkVerb::MonitorPort, Subject::Nothing, "print events of ports"),
];

/// A form of a devlink command, for help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevlinkForm {
    /// The form, without `devlink`: capitals stand for words to be filled in, brackets for what may be left out.
    pub form: String,
    /// What the command does.
    pub does: &'static str,
}

/// Every form of the commands of an object, such as `port`.
pub fn devlink_forms(object: &str) -> Vec<DevlinkForm> {
    FORMS.iter().filter(|form| form.verb.words()[0] == object).map(Form::described).collect()
}

/// How the value of an option is written; empty if it has none.
fn value_of(keyword: &str) -> String {
    match keyword {
        "mode" => ESWITCH_MODES.join("|"),
        "inline-mode" => INLINE_MODES.join("|"),
        "encap-mode" => ENCAP_MODES.join("|"),
        "action" => "driver_reinit".to_owned(),
        "cmode" => CONFIGURATION_MODES.join("|"),
        "flavour" => "pcisf".to_owned(),
        "hw_addr" => "MAC".to_owned(),
        "roce" => "enable|disable".to_owned(),
        "state" => "active|inactive".to_owned(),
        "tx_share" | "tx_max" => "RATE".to_owned(),
        "name" | "parent" | "reporter" => "NAME".to_owned(),
        "value" => "VALUE".to_owned(),
        "noparent" => String::new(),
        _ => "N".to_owned(),
    }
}

impl Form {
    fn described(&self) -> DevlinkForm {
        let mut form = self.verb.words().join(" ");
        let (options, required): (Vec<String>, bool) = (
            self.options.iter().map(|keyword| format!("{keyword} {}", value_of(keyword)).trim().to_owned()).collect(),
            matches!(self.required, Required::All | Required::AllOfOne),
        );
        let options = match required {
            true => options.join(" "),
            false => options.iter().map(|option| format!("[{option}]")).collect::<Vec<_>>().join(" "),
        };
        let subject = match self.subject {
            Subject::Nothing => "",
            Subject::Device | Subject::DeviceOrAll => "DEV",
            Subject::Port | Subject::PortOrAll => "PORT",
            Subject::PortOrNode | Subject::PortOrNodeOrAll => "PORT|DEV/NODE",
        };
        let rest = format!("{subject} {options}").trim().to_owned();
        match self.subject {
            Subject::DeviceOrAll | Subject::PortOrAll | Subject::PortOrNodeOrAll => form += &format!(" [{rest}]"),
            _ if rest.is_empty() => {}
            _ => form += &format!(" {rest}"),
        }
        DevlinkForm { form, does: self.does }
    }
}

/// A command, with the places in the text at which its parts were.
struct Parsed {
    command: DevlinkCommand,
    verb_at: usize,
    handle_at: usize,
    /// Of each option, where its value is.
    values_at: Vec<usize>,
}

impl DevlinkCommand {
    /// Reads the arguments of a program, which are the words of a command without `devlink`. As with devlink(8) each
    /// word of a verb and each option may be shortened as long as it is the only one that begins so.
    ///
    /// # Errors
    /// What was expected, and what was found instead.
    pub fn parse_arguments(arguments: &[String]) -> Result<Self, WordError> {
        let text = arguments.join(" ");
        let mut words = Words::of_arguments(&text, arguments);
        let parsed = parse(&mut words)?;
        words.end()?;
        Ok(parsed.command)
    }
}

/// Reads a command to the engine of a card, or a query, after the word `devlink`.
pub(crate) fn request(words: &mut Words<'_>) -> Result<Request, WordError> {
    let parsed = parse(words)?;
    narrow(&parsed, words)
}

fn parse(words: &mut Words<'_>) -> Result<Parsed, WordError> {
    let verb_at = words.at();
    let form = verb(words)?;
    let handle_at = words.at();
    let mut command = DevlinkCommand::new(form.verb, handle(words, form.subject)?);
    let mut values_at = Vec::new();
    let missing = |command: &DevlinkCommand| -> Vec<&'static str> {
        let given: Vec<String> = command.options.iter().map(|option| option.words().0).collect();
        let mut missing = form.options.iter().copied().filter(|keyword| !given.iter().any(|given| given == keyword));
        match form.required {
            Required::One if given.is_empty() => form.options.to_vec(),
            Required::All => missing.by_ref().take(1).collect(),
            Required::AllOfOne if command.handle.is_some() => missing.by_ref().take(1).collect(),
            _ => Vec::new(),
        }
    };
    let takes_options = !form.options.is_empty() && (form.required != Required::AllOfOne || command.handle.is_some());
    while takes_options && words.peek().is_some() {
        let keyword = words.keyword(form.options)?;
        let value_at = words.at();
        let option = option(words, keyword)?;
        let is_same = |given: &DevlinkOption| given.words().0 == option.words().0;
        if let Some(given) = command.options.iter().position(is_same) {
            command.options.remove(given);
            values_at.remove(given);
        }
        command.options.push(option);
        values_at.push(value_at);
    }
    match missing(&command)[..] {
        [] => Ok(Parsed { command, verb_at, handle_at, values_at }),
        ref missing => Err(words.expected_one_of(missing)),
    }
}

/// Reads a verb, word by word.
fn verb(words: &mut Words<'_>) -> Result<&'static Form, WordError> {
    let mut forms: Vec<&'static Form> = FORMS.iter().collect();
    let mut depth = 0;
    loop {
        if let [form] = forms[..]
            && form.verb.words().len() == depth
        {
            return Ok(form);
        }
        let mut names: Vec<&'static str> = Vec::new();
        for form in &forms {
            let name = form.verb.words()[depth];
            if !names.contains(&name) {
                names.push(name);
            }
        }
        // A handle in the place of a verb means that the default verb was left out.
        let is_left_out = words.peek().is_none_or(|word| word.contains('/'));
        let default = forms.iter().find(|form| form.is_default && form.verb.words().len() == depth + 1);
        let name = match default {
            Some(form) if is_left_out => form.verb.words()[depth],
            _ => words.keyword(&names)?,
        };
        forms.retain(|form| form.verb.words()[depth] == name);
        depth += 1;
    }
}

fn handle(words: &mut Words<'_>, subject: Subject) -> Result<Option<DevlinkHandle>, WordError> {
    const DEVICE: &str = "a device such as pci/0000:08:00.0";
    const PORT: &str = "a port such as pci/0000:08:00.0/1";
    const PORT_OR_NODE: &str = "a port such as pci/0000:08:00.0/1, or a rate node such as pci/0000:08:00.0/gold";
    let expected = match subject {
        Subject::Nothing => return Ok(None),
        Subject::DeviceOrAll | Subject::PortOrAll | Subject::PortOrNodeOrAll if words.peek().is_none() => {
            return Ok(None);
        }
        Subject::Device | Subject::DeviceOrAll => DEVICE,
        Subject::Port | Subject::PortOrAll => PORT,
        Subject::PortOrNode | Subject::PortOrNodeOrAll => PORT_OR_NODE,
    };
    let (at, word) = words.next(expected)?;
    let parts: Vec<&str> = word.split('/').collect();
    let part = match (&parts[..], expected) {
        ([_, _], DEVICE) => Some(None),
        ([_, _, last], PORT | PORT_OR_NODE) => match (last.parse(), expected) {
            (Ok(index), _) => Some(Some(HandlePart::Port(index))),
            (Err(_), PORT_OR_NODE) => Some(Some(HandlePart::RateNode((*last).to_owned()))),
            (Err(_), _) => None,
        },
        _ => None,
    };
    match part {
        Some(part) if parts.iter().all(|part| !part.is_empty()) => {
            Ok(Some(DevlinkHandle { bus: parts[0].to_owned(), device: parts[1].to_owned(), part }))
        }
        _ => Err(WordError { at, message: format!("expected {expected}, found `{word}`") }),
    }
}

fn option(words: &mut Words<'_>, keyword: &str) -> Result<DevlinkOption, WordError> {
    Ok(match keyword {
        "mode" => DevlinkOption::Mode(number_of(words, &ESWITCH_MODES)?),
        "inline-mode" => DevlinkOption::InlineMode(number_of(words, &INLINE_MODES)?),
        "encap-mode" => DevlinkOption::EncapMode(number_of(words, &ENCAP_MODES)?),
        "netns" => {
            let netns = name(words, "the name of a network namespace, or the number of a process in it")?;
            netns.parse().map_or(DevlinkOption::Netns(netns), DevlinkOption::NetnsPid)
        }
        "action" => words.keyword(&["driver_reinit"]).map(|_| DevlinkOption::ReloadAction(1))?,
        "name" => DevlinkOption::ParamName(name(words, "the name of a parameter")?),
        "value" => DevlinkOption::ParamValue(match name(words, "the value of a parameter")?.as_str() {
            "true" => ParamValue::Flag(true),
            "false" => ParamValue::Flag(false),
            text => text.parse().map_or_else(|_| ParamValue::Text(text.to_owned()), ParamValue::Number),
        }),
        "cmode" => DevlinkOption::ParamCmode(number_of(words, &CONFIGURATION_MODES)?),
        "flavour" => words.keyword(&["pcisf"]).map(|_| DevlinkOption::Flavour(PCI_SF))?,
        "pfnum" => DevlinkOption::PfNum(words.parse::<u16>("the number of the PF")?.into()),
        "sfnum" => DevlinkOption::SfNum(words.parse("the number of the SF")?),
        "controller" => DevlinkOption::Controller(words.parse("the number of the controller")?),
        "hw_addr" => DevlinkOption::HwAddr(words.parse_saying::<MacAddr>("a MAC address")?.0.to_vec()),
        "roce" => DevlinkOption::Capability(ROCE, words.one_of(&["enable", "disable"])? == "enable"),
        "state" => DevlinkOption::State(number_of(words, &FUNCTION_STATES)?),
        "tx_share" => DevlinkOption::TxShare(rate(words)?),
        "tx_max" => DevlinkOption::TxMax(rate(words)?),
        "tx_priority" => DevlinkOption::TxPriority(words.parse("a number")?),
        "tx_weight" => DevlinkOption::TxWeight(words.parse("a number")?),
        "parent" => DevlinkOption::Parent(name(words, "the name of a rate node")?),
        "noparent" => DevlinkOption::Parent(String::new()),
        _ => DevlinkOption::Reporter(name(words, "the name of a reporter")?),
    })
}

/// The place of the next word among these.
fn number_of<T: TryFrom<usize> + Default>(words: &mut Words<'_>, names: &[&'static str]) -> Result<T, WordError> {
    let name = words.one_of(names)?;
    let number = names.iter().position(|known| *known == name).unwrap_or_default();
    // The lists of names are short.
    Ok(T::try_from(number).unwrap_or_default())
}

/// A word as it is; `""` is the empty one.
fn name(words: &mut Words<'_>, expected: &str) -> Result<String, WordError> {
    let (_, word) = words.next(expected)?;
    Ok(if word == "\"\"" { String::new() } else { word.to_owned() })
}

/// A rate in bytes a second: `10mbit`, `1gbit`, `125kbps`, or bits without a unit.
fn rate(words: &mut Words<'_>) -> Result<u64, WordError> {
    const EXPECTED: &str = "a rate: a number and bit, kbit, mbit, gbit, bps, kbps, mbps or gbps";
    const UNITS: [(&str, u64, u64); 8] = [
        ("bit", 1, 8),
        ("kbit", 1_000, 8),
        ("mbit", 1_000_000, 8),
        ("gbit", 1_000_000_000, 8),
        ("bps", 1, 1),
        ("kbps", 1_000, 1),
        ("mbps", 1_000_000, 1),
        ("gbps", 1_000_000_000, 1),
    ];
    let (at, word) = words.next(EXPECTED)?;
    let digits = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    let (number, unit) = word.split_at(digits);
    let unit = if unit.is_empty() { "bit".to_owned() } else { unit.to_lowercase() };
    let rate = UNITS
        .iter()
        .find(|(name, ..)| *name == unit)
        .and_then(|(_, times, bits)| number.parse::<u64>().ok()?.checked_mul(*times).map(|all| all / bits));
    rate.ok_or_else(|| WordError { at, message: format!("expected {EXPECTED}, found `{word}`") })
}

/// The command or query that the engine of a card knows, if it knows one. `words` are those after the command.
fn narrow(parsed: &Parsed, words: &Words<'_>) -> Result<Request, WordError> {
    let DevlinkCommand { verb, handle, options } = &parsed.command;
    let error = |at, message: String| Err(WordError { at, message });
    let expected = |at: usize, expected: &str, found: &dyn std::fmt::Display| WordError {
        at,
        message: format!("expected {expected}, found `{found}`"),
    };
    let device = || {
        let found = handle.as_ref().filter(|handle| handle.bus == "pci").and_then(|handle| handle.device.parse().ok());
        found.ok_or_else(|| {
            let found = handle.as_ref().map(ToString::to_string).unwrap_or_default();
            expected(parsed.handle_at, "a device such as pci/0000:08:00.0", &found)
        })
    };
    let port = || {
        let handle = handle.as_ref().map(ToString::to_string).unwrap_or_default();
        let found = handle.parse();
        found.map_err(|_| expected(parsed.handle_at, "a port such as pci/0000:08:00.0/1", &handle))
    };
    Ok(match verb {
        DevlinkVerb::DevShow => Query::Devices(handle.as_ref().map(|_| device()).transpose()?).into(),
        DevlinkVerb::EswitchShow => Query::Eswitch(device()?).into(),
        DevlinkVerb::PortShow => Query::Ports(handle.as_ref().map(|_| port()).transpose()?).into(),
        DevlinkVerb::DevReload => {
            let is_netns =
                |option: &DevlinkOption| matches!(option, DevlinkOption::Netns(_) | DevlinkOption::NetnsPid(_));
            if let Some(at) = options.iter().position(is_netns) {
                let why = "here a device stays in its network namespace; `esw dev reload` moves one of a daemon's card";
                return error(parsed.values_at[at], why.to_owned());
            }
            Command::Reload(device()?).into()
        }
        DevlinkVerb::PortDel => Command::DeletePort(port()?).into(),
        DevlinkVerb::EswitchSet => {
            let mut set = (None, None, None);
            for option in options {
                match option {
                    DevlinkOption::Mode(mode) => set.0 = Mode::of_number(*mode),
                    DevlinkOption::InlineMode(mode) => {
                        set.1 = Some(match mode {
                            0 => InlineMode::None,
                            1 => InlineMode::Link,
                            2 => InlineMode::Network,
                            _ => InlineMode::Transport,
                        });
                    }
                    DevlinkOption::EncapMode(mode) => set.2 = Some(*mode != 0),
                    _ => {}
                }
            }
            // In the order in which the kernel's devlink_nl_eswitch_set_doit() sets them.
            let options = set.0.map(EswitchOption::Mode).into_iter();
            let options = options.chain(set.1.map(EswitchOption::InlineMode));
            let options = options.chain(set.2.map(EswitchOption::EncapMode));
            Command::SetEswitch { device: device()?, options: options.collect() }.into()
        }
        DevlinkVerb::FunctionSet => {
            let mut change = FunctionChange::default();
            for option in options {
                match option {
                    DevlinkOption::HwAddr(address) => {
                        change.hw_addr = <[u8; 6]>::try_from(&address[..]).ok().map(MacAddr);
                    }
                    DevlinkOption::Capability(ROCE, on) => change.roce = Some(*on),
                    DevlinkOption::State(state) => change.active = Some(*state != 0),
                    _ => {}
                }
            }
            Command::SetFunction { port: port()?, change }.into()
        }
        DevlinkVerb::PortAdd => {
            let device = device()?;
            let (mut flavour, mut pfnum, mut sfnum, mut controller) = (None, None, None, 0);
            for option in options {
                match option {
                    DevlinkOption::Flavour(number) => flavour = Some(*number),
                    DevlinkOption::PfNum(number) => pfnum = Some(*number),
                    DevlinkOption::SfNum(number) => sfnum = Some(*number),
                    DevlinkOption::Controller(number) => controller = *number,
                    _ => {}
                }
            }
            let (Some(pfnum), Some(sfnum), Some(_)) = (pfnum, sfnum, flavour) else {
                let given = [("flavour", flavour.is_some()), ("pfnum", pfnum.is_some()), ("sfnum", sfnum.is_some())];
                let missing: Vec<&str> =
                    given.iter().filter(|(_, is_given)| !is_given).map(|(name, _)| *name).collect();
                return Err(words.expected_one_of(&missing[..1]));
            };
            Command::AddSf { device, pfnum, sfnum: SfNum(sfnum), controller }.into()
        }
        DevlinkVerb::ParamSet => {
            let mut set = None;
            for (option, at) in options.iter().zip(&parsed.values_at) {
                let (_, found) = option.words();
                match option {
                    DevlinkOption::ParamName(name) if name == ESW_MULTIPORT => {}
                    DevlinkOption::ParamName(_) => return Err(expected(*at, "`esw_multiport`", &found)),
                    DevlinkOption::ParamValue(ParamValue::Flag(on)) => set = Some(*on),
                    DevlinkOption::ParamValue(_) => return Err(expected(*at, "`true` or `false`", &found)),
                    DevlinkOption::ParamCmode(mode) if *mode != RUNTIME => {
                        return Err(expected(*at, "`runtime`", &found));
                    }
                    _ => {}
                }
            }
            Command::SetEswMultiport { device: device()?, value: set.unwrap_or_default() }.into()
        }
        verb => {
            let words = verb.words().join(" ");
            return error(
                parsed.verb_at,
                format!("`devlink {words}` takes a card that a daemon keeps up: see `esw up --daemon`, `esw {words}`"),
            );
        }
    })
}

#[cfg(test)]
mod tests {
    use eswitch::CardConfig;

    use super::*;

    fn parsed(text: &str) -> Result<DevlinkCommand, String> {
        let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        DevlinkCommand::parse_arguments(&arguments).map_err(|error| error.to_string())
    }

    /// Ways to write each form: one for each of its options, and one with all of them.
    fn ways(form: &Form) -> Vec<String> {
        let subject = match form.subject {
            Subject::Nothing => "",
            Subject::Device | Subject::DeviceOrAll => "pci/0000:08:00.0",
            Subject::Port | Subject::PortOrAll => "pci/0000:08:00.0/1",
            Subject::PortOrNode | Subject::PortOrNodeOrAll => "pci/0000:08:00.0/gold",
        };
        let values = |keyword: &&str| -> Vec<String> {
            let value = value_of(keyword);
            let value = value.replace("MAC", "02:00:00:00:00:01").replace("RATE", "10mbit").replace('N', "7");
            value.split('|').map(|value| format!("{keyword} {value}")).collect()
        };
        let mut tails: Vec<String> = match form.required {
            Required::All | Required::AllOfOne => Vec::new(),
            Required::One => form.options.iter().flat_map(values).collect(),
            Required::None => form.options.iter().flat_map(values).chain([String::new()]).collect(),
        };
        let first: Vec<String> = form.options.iter().map(|keyword| values(keyword).swap_remove(0)).collect();
        tails.push(first.join(" "));
        tails.iter().map(|tail| format!("{} {subject} {tail}", form.verb.words().join(" ")).trim().to_owned()).collect()
    }

    #[test]
    fn what_is_written_of_a_command_is_parsed_as_the_same_command() {
        let mut read = 0;
        for way in FORMS.iter().flat_map(ways) {
            let command = parsed(&way).unwrap_or_else(|error| panic!("`{way}`: {error}"));
            let written = command.to_string();
            let again = written.strip_prefix("devlink ").map(parsed);
            assert_eq!(again, Some(Ok(command)), "`{way}`: `{written}`");
            read += 1;
        }
        assert!(read > 60, "{read}");
    }

    #[test]
    fn what_is_written_of_a_request_to_the_engine_is_parsed_as_the_same_request() {
        let card = CardConfig::default();
        let mut read = 0;
        for way in FORMS.iter().flat_map(ways) {
            let text = format!("devlink {way}");
            let request = |text: &str| Request::from_words(&mut Words::new(text));
            let Ok(first) = request(&text) else { continue };
            let written = match &first {
                Request::Command(command) => command.in_words(&card),
                Request::Query(query) => query.in_words(&card),
            };
            assert_eq!(request(&written), Ok(first), "`{text}`: `{written}`");
            read += 1;
        }
        assert!(read > 15, "{read}");
    }

    #[test]
    fn words_may_be_shortened_but_not_beyond_what_is_clear() {
        let verb = |text: &str| parsed(text).map(|command| command.verb);
        assert_eq!(verb("dev sh"), Ok(DevlinkVerb::DevShow));
        assert_eq!(verb("d e sh pci/x"), Ok(DevlinkVerb::EswitchShow));
        assert_eq!(verb("dev eswitch set pci/x mo legacy"), Ok(DevlinkVerb::EswitchSet));
        assert_eq!(verb("dev eswitch s pci/x"), Err("expected `set` or `show`, found `s`".to_owned()));
        assert_eq!(verb("dev eswitch"), Err("expected `set` or `show`, found the end".to_owned()));
    }

    #[test]
    fn a_verb_that_is_left_out_is_the_default() {
        let verb = |text: &str| parsed(text).map(|command| (command.verb, command.handle.is_some()));
        assert_eq!(verb("dev"), Ok((DevlinkVerb::DevShow, false)));
        assert_eq!(verb("port pci/x/1"), Ok((DevlinkVerb::PortShow, true)));
        assert_eq!(verb("port function rate"), Ok((DevlinkVerb::RateShow, false)));
        assert_eq!(verb("monitor"), Ok((DevlinkVerb::MonitorAll, false)));
    }

    #[test]
    fn rates_are_bytes_a_second() {
        let of = |text: &str| rate(&mut Words::new(text)).ok();
        assert_eq!(of("10mbit"), Some(1_250_000));
        assert_eq!(of("10Mbps"), Some(10_000_000));
        assert_eq!(of("8"), Some(1));
        assert_eq!(of("10furlongs"), None);
        assert_eq!(of("99999999999999999999gbit"), None);
    }

    #[test]
    fn a_port_is_a_number_and_a_node_is_not() {
        let of = |text: &str| handle(&mut Words::new(text), Subject::PortOrNode).ok().flatten()?.part;
        assert_eq!(of("pci/0000:08:00.0/1"), Some(HandlePart::Port(1)));
        assert_eq!(of("pci/0000:08:00.0/gold"), Some(HandlePart::RateNode("gold".to_owned())));
        assert_eq!(of("pci/0000:08:00.0"), None);
        assert_eq!(of("pci//1"), None);
    }

    #[test]
    fn an_argument_may_be_empty_or_have_white_space_in_it() {
        let arguments = ["port", "function", "rate", "set", "pci/x/a b", "parent", ""].map(str::to_owned);
        let command = DevlinkCommand::parse_arguments(&arguments).unwrap();
        assert_eq!(command.handle.unwrap().part, Some(HandlePart::RateNode("a b".to_owned())));
        assert_eq!(command.options, [DevlinkOption::Parent(String::new())]);
    }
}
