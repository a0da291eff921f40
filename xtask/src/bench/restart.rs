//! The time until a daemon is ready again after `kill -9`, compared with a start from nothing.
//!
//! Each turn brings a card with 1,000 VFs in switchdev mode up from its configuration, kills the daemon, and starts
//! it again over what is left. The time is that of `esw up --daemon --detach`, which returns when the card is ready.

use std::process::Command;

use anyhow::{Result, bail};

use super::{Measurement, OrderedRatio, Quantity, Row, Target, median};

/// The measurements of this group.
pub const MEASUREMENTS: &[Measurement] = &[Measurement { name: "daemon: restart after kill -9", run: restart }];

const VFS: usize = 1_000;
const ROUNDS: usize = 7;

/// Prints a line for each turn: the nanoseconds from nothing, and again after the kill.
const SCRIPT: &str = r#"
mount -t tmpfs tmpfs /run; mkdir /run/state /run/netns; ip link set lo up
cat > /run/config <<END
state_dir = "/run/state"
[cards.bench]
kind = "linux"
[cards.bench.card]
total_vfs = $VFS
vfs = $VFS
mode = "switchdev"
END
now() { date +%s%N; }
for turn in $(seq $ROUNDS); do
    sleep 1; a=$(now)
    $ESW up --daemon --detach --fresh --config /run/config > /run/told 2>&1
    b=$(now)
    kill -9 $(sed -n 's/.*process \([0-9]*\).*/\1/p' /run/told)
    sleep 1; c=$(now)
    $ESW up --daemon --detach --config /run/config > /run/told 2>&1
    d=$(now)
    $ESW port | grep -c pcivf | grep -qx $VFS
    $ESW down > /dev/null
    echo $((b - a)) $((d - c))
done
"#;

fn restart() -> Result<Vec<Row>> {
    let esw = crate::workspace::build_esw()?;
    let what = format!("ready again after kill -9, {} representors", VFS + 1);
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec", SCRIPT])
        .env("ESW", esw)
        .env("VFS", VFS.to_string())
        .env("ROUNDS", ROUNDS.to_string())
        .output();
    let output = match output {
        Ok(output) if output.status.success() => output,
        Ok(output) => {
            return Ok(vec![Row::unavailable(what, String::from_utf8_lossy(&output.stderr).trim().to_owned())]);
        }
        Err(error) => return Ok(vec![Row::unavailable(what, format!("unshare: {error}"))]),
    };
    let text = String::from_utf8(output.stdout)?;
    let mut turns: Vec<(f64, f64)> = Vec::new();
    for line in text.lines() {
        let Some((fresh, again)) = line.split_once(' ') else { bail!("`{line}` is no turn") };
        turns.push((fresh.parse::<f64>()? / 1e6, again.parse::<f64>()? / 1e6));
    }
    let middle = |of: fn(&(f64, f64)) -> f64| Quantity {
        value: median(turns.iter().map(|turn| OrderedRatio(of(turn)))).0,
        unit: "ms",
    };
    let ratio = median(turns.iter().map(|(fresh, again)| OrderedRatio(again / fresh))).0;
    let row = Row::compared(what, middle(|turn| turn.1), "from nothing", middle(|turn| turn.0), ratio);
    Ok(vec![row.target(Target::RatioAtMost(1.0))])
}
