//! One loop in plain Rust, compiled for each instruction set: the compiler's vectors, and the same result everywhere.
//!
//! For loops that it vectorises as well as a person would. What needs intrinsics has a file per instruction set.

/// Defines a function that runs `$plain`, an `#[inline(always)]` function, as compiled for the instruction set it is given.
///
/// The results agree because Rust neither contracts nor reorders arithmetic of floats, whatever the target features.
macro_rules! compiled_for_each {
    ($(#[$about:meta])* $vis:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $plain:expr) => {
        $(#[$about])*
        $vis fn $name(isa: crate::isa::Present, $($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,popcnt")]
            fn avx2($($argument: $type),*) $(-> $result)? {
                $plain($($argument),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni,avx512vpopcntdq")]
            fn avx512($($argument: $type),*) $(-> $result)? {
                $plain($($argument),*)
            }

            match isa.isa() {
                // SAFETY: a `Present` exists only for what `Isa::is_available` has seen on this machine.
                #[cfg(target_arch = "x86_64")]
                crate::isa::Isa::Avx2 => unsafe { avx2($($argument),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                crate::isa::Isa::Avx512 => unsafe { avx512($($argument),*) },
                _ => $plain($($argument),*),
            }
        }
    };
}

pub(crate) use compiled_for_each;
