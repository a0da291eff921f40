//! Stories in columns, as a terminal shows them.

use crate::stories;
use explore::{RowKind, columns};

#[test]
fn a_race_in_columns() {
    insta::assert_snapshot!(columns(&stories::race(), 100));
}

#[test]
fn a_race_in_wide_columns() {
    insta::assert_snapshot!(columns(&stories::race(), 160));
}

#[test]
fn a_race_where_there_is_no_room_for_columns() {
    insta::assert_snapshot!(columns(&stories::race(), 56));
}

#[test]
fn a_deadlock_says_who_waits_for_whom() {
    insta::assert_snapshot!(columns(&stories::deadlock(), 100));
}

#[test]
fn no_line_is_too_long_and_nothing_moves_the_cursor() {
    for width in [40, 56, 80, 100, 131, 160, 300] {
        for story in [stories::race(), stories::deadlock(), stories::hostile(), stories::long()] {
            let text = columns(&story, width);
            for line in text.lines().filter(|line| !line.starts_with("run again")) {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
            assert!(!text.chars().any(|c| c.is_control() && c != '\n'));
        }
    }
}

#[test]
fn an_empty_story_is_shown() {
    assert_eq!(columns(&explore::Story::default(), 100).lines().next(), Some("faults       none"));
}

#[test]
fn threads_that_follow_one_another_share_a_column_where_each_cannot_have_one() {
    let mut writer = stories::Writer::new(&["setup", "orchestrator", "admin", "finally"]);
    writer.say(0, RowKind::StepBegin, "modprobe mlx5_ib").say(0, RowKind::StepEnd, "modprobe mlx5_ib");
    writer.say(1, RowKind::StepBegin, "rmmod mlx5_ib").say(2, RowKind::StepBegin, "devlink port show");
    writer.say(1, RowKind::StepEnd, "rmmod mlx5_ib").say(2, RowKind::StepEnd, "devlink port show: ENODEV");
    writer.say(3, RowKind::StepBegin, "devlink dev show").say(3, RowKind::StepEnd, "devlink dev show");
    insta::assert_snapshot!(columns(&writer.end("too late", &[]), 80));
}
