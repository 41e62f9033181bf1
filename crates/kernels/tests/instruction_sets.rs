//! No instruction set that the machine has is skipped, and each can be forced.
//!
//! The kernels of each are compared in the unit tests, which go through `Isa::available()`; this file makes sure that
//! nothing is missing from there. What the machine has is asked of the system, not of the crate, where it tells.
//!
//! Sets that a machine lacks can be run by emulation, from test binaries that are linked statically
//! (`-C target-feature=+crt-static`): AVX-512 under Bochs with `cpu: model=corei7_icelake_u`, where the binaries are the
//! whole initramfs of a Linux 5.10 booted with `noxsaves nopku clearcpuid=580` (580 is FSRM: without ERMS, which Bochs
//! does not offer, that kernel's `memmove` runs wild); NEON under `qemu-aarch64-static` (there the three tests of this
//! file that start processes or read the host's /proc/cpuinfo cannot pass).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::{Command, Output};

use kernels::{ISA_VARIABLE, Isa, Metric, Query, Vectors, isa, isa_from_env};

/// Set in the child process that a test starts from itself.
const CHILD_VARIABLE: &str = "KERNELS_TEST_CHILD";

/// The instruction sets that the processor reports, by Rust's own detection.
fn reported() -> Vec<Isa> {
    let mut reported = vec![Isa::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("popcnt");
        if avx2 {
            reported.push(Isa::Avx2);
        }
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512vpopcntdq");
        if avx2 && avx512 {
            reported.push(Isa::Avx512);
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        reported.push(Isa::Neon);
    }
    reported
}

#[test]
fn every_instruction_set_that_the_machine_reports_is_available() {
    assert_eq!(Isa::available(), reported());
}

#[cfg(target_os = "linux")]
#[test]
fn every_instruction_set_that_the_kernel_lists_is_available() {
    let text = std::fs::read_to_string("/proc/cpuinfo").expect("Linux tells what the processor has");
    let line = text.lines().find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let flags: Vec<&str> = line.expect("a line of flags").split_whitespace().collect();
    let has = |needed: &[&str]| needed.iter().all(|flag| flags.contains(flag));
    let avx2 = has(&["avx2", "fma", "f16c", "popcnt"]);
    let avx512 = avx2 && has(&["avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_vpopcntdq"]);
    for (isa, listed) in [(Isa::Avx2, avx2), (Isa::Avx512, avx512), (Isa::Neon, has(&["asimd"]))] {
        assert_eq!(isa.is_available(), listed, "{isa}; the kernel lists {flags:?}");
    }
}

/// Runs the test `report_choice` of this file in a new process, with the variable set to `value`.
fn report_with(value: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["report_choice", "--exact", "--nocapture"])
        .env(ISA_VARIABLE, value)
        .env(CHILD_VARIABLE, "1")
        .output()
        .unwrap()
}

/// Prints the choice of this process; a check only in the children that the tests below start.
#[test]
fn report_choice() {
    let query = Query::new(Metric::L2, 2, Vectors::F32(&[0.0, 0.0])).unwrap();
    let mut out = [0.0];
    query.distances(Vectors::F32(&[3.0, 4.0]), &mut out).unwrap();
    assert_eq!(out, [5.0]);
    assert_eq!(query.isa(), isa());
    if std::env::var_os(CHILD_VARIABLE).is_some() {
        println!("chosen={};asked={:?}", isa(), isa_from_env());
    }
}

#[test]
fn the_variable_forces_every_available_instruction_set() {
    for forced in Isa::available() {
        let output = report_with(forced.name());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains(&format!("chosen={forced};asked=Ok(")), "forced {forced}: {text}");
    }
}

#[test]
fn a_name_that_cannot_be_used_is_an_error_and_the_fastest_is_chosen() {
    let fastest = *Isa::available().last().unwrap();
    let missing = Isa::ALL.into_iter().find(|isa| !isa.is_available()).unwrap();
    let expected = [
        ("quantum".to_string(), "'quantum', which is no instruction set; unset it or use one of: scalar".to_string()),
        (
            missing.name().to_string(),
            format!("'{missing}', which this machine does not have; unset it or use one of: scalar"),
        ),
    ];
    for (value, message) in expected {
        let output = report_with(&value);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains(&format!("chosen={fastest};asked=Err(")), "{value}: {text}");
        assert!(text.contains(&message), "{value}: {text}");
    }
}
