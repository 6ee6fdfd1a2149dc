//! The macro that defines [`super::table`].

/// `nr name(arg: Type, …) => handler, Support, "note";` in two lists: `now` (plain functions) and `wait` (async).
macro_rules! syscall_table {
    (
        now {
            $( $nr:literal $name:ident ( $( $arg:ident : $ty:ty ),* )
                => $handler:path, $support:ident, $note:literal; )*
        }
        wait {
            $( $wnr:literal $wname:ident ( $( $warg:ident : $wty:ty ),* )
                => $whandler:path, $wsupport:ident, $wnote:literal; )*
        }
    ) => {
        /// Every supported call.
        pub const TABLE: &[$crate::syscalls::Entry] = &[
            $( $crate::syscalls::Entry {
                nr: $nr,
                name: stringify!($name),
                args: &[ $( (stringify!($arg), <$ty as $crate::syscalls::arg::Arg>::SHOW) ),* ],
                support: $crate::syscalls::Support::$support,
                note: $note,
            }, )*
            $( $crate::syscalls::Entry {
                nr: $wnr,
                name: stringify!($wname),
                args: &[ $( (stringify!($warg), <$wty as $crate::syscalls::arg::Arg>::SHOW) ),* ],
                support: $crate::syscalls::Support::$wsupport,
                note: $wnote,
            }, )*
        ];

        /// Calls that never wait.
        #[allow(unused_assignments, unused_mut, unused_variables)]
        pub fn call_now(cx: &mut $crate::syscalls::Ctx<'_>) -> Option<$crate::error::SysResult> {
            let a = cx.args;
            let mut i = 0usize;
            let mut next = || { let v = a.get(i).copied().unwrap_or(0); i += 1; v };
            match cx.nr {
                $( $nr => {
                    $( let $arg = <$ty as $crate::syscalls::arg::Arg>::decode(next()); )*
                    Some($handler(cx $(, $arg)*))
                } )*
                _ => None,
            }
        }

        /// Calls that may wait.
        #[allow(unused_assignments, unused_mut, unused_variables)]
        pub async fn call_wait(cx: &mut $crate::syscalls::Ctx<'_>) -> $crate::error::SysResult {
            let a = cx.args;
            let mut i = 0usize;
            let mut next = || { let v = a.get(i).copied().unwrap_or(0); i += 1; v };
            match cx.nr {
                $( $wnr => {
                    $( let $warg = <$wty as $crate::syscalls::arg::Arg>::decode(next()); )*
                    $whandler(cx $(, $warg)*).await
                } )*
                _ => $crate::syscalls::unknown(cx),
            }
        }
    };
}
