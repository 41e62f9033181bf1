//! The instruction sets: which exist, which this machine has, which one is used.
//!
//! This is the only place that asks the processor. The kernels take a [`Present`], which only this file can make,
//! so whoever holds one knows that the machine has the instructions.

use std::fmt;
use std::sync::OnceLock;

/// The environment variable that forces an instruction set: `scalar`, `avx2`, `avx512` or `neon`.
pub const ISA_VARIABLE: &str = "SAGITTA_ISA";

/// An instruction set that kernels are written for. Every one gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust, on any machine: the reference for all others, and slow.
    Scalar,
    /// x86-64 with AVX2, FMA, F16C and POPCNT (Haswell, Zen and later).
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, VNNI and VPOPCNTDQ beside all of [`Isa::Avx2`] (Ice Lake, Zen 4 and later).
    /// Machines with an older AVX-512 use [`Isa::Avx2`].
    Avx512,
    /// AArch64 with NEON.
    Neon,
}

impl Isa {
    /// Every instruction set, on whichever machine.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Neon];

    /// The name, as in [`ISA_VARIABLE`].
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        }
    }

    /// Reads a name, upper or lower case.
    pub fn parse(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name))
    }

    /// What this machine has, fastest last. Never empty: [`Isa::Scalar`] is everywhere.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => has_avx2(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => has_avx2() && has_avx512(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[allow(unreachable_patterns, reason = "which of the others remain depends on the architecture")]
            _ => false,
        }
    }

    /// The proof that this machine has it, or `None`.
    pub(crate) fn present(self) -> Option<Present> {
        self.is_available().then_some(Present(self))
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An instruction set that this machine was seen to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Present(Isa);

impl Present {
    /// The instruction set.
    pub(crate) fn isa(self) -> Isa {
        self.0
    }

    /// The one that queries use, see [`isa`].
    pub(crate) fn chosen() -> Present {
        static CHOSEN: OnceLock<Present> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let forced = isa_from_env().ok().and_then(Isa::present);
            forced.unwrap_or_else(best)
        })
    }
}

/// The instruction set that queries use in this process: the one that [`ISA_VARIABLE`] names, or else the fastest one
/// present. Chosen at the first call and kept.
///
/// A name that is unknown or not available here is passed over; call [`isa_from_env`] at start to refuse it.
pub fn isa() -> Isa {
    Present::chosen().isa()
}

/// The instruction set that [`ISA_VARIABLE`] asks for, or the fastest one present if it is unset or empty.
///
/// # Errors
/// A message for the user if the name is unknown or this machine does not have it.
pub fn isa_from_env() -> Result<Isa, String> {
    let Some(value) = std::env::var_os(ISA_VARIABLE).filter(|value| !value.is_empty()) else {
        return Ok(best().isa());
    };
    let name = value.to_string_lossy();
    let names = Isa::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ");
    let Some(isa) = Isa::parse(&name) else {
        return Err(format!(
            "{ISA_VARIABLE} is '{name}', which is no instruction set; unset it or use one of: {names}"
        ));
    };
    if !isa.is_available() {
        return Err(format!(
            "{ISA_VARIABLE} is '{isa}', which this machine does not have; unset it or use one of: {names}"
        ));
    }
    Ok(isa)
}

/// The fastest one present.
fn best() -> Present {
    Isa::available().last().map_or(Present(Isa::Scalar), |isa| Present(*isa))
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("popcnt")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512vpopcntdq")
}
