//! Enums whose values are words of metrics, messages and settings.

/// Defines an enum with a text for each value: `ALL` lists the values, and `as_str` returns the
/// text.
macro_rules! text_enum {
    ($($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$of_value:meta])* $value:ident = $text:literal,)* })*) => {$(
        $(#[$meta])*
        $vis enum $name {
            $($(#[$of_value])* $value,)*
        }

        impl $name {
            /// All values, in their order.
            $vis const ALL: [Self; [$($text,)*].len()] = [$(Self::$value,)*];

            /// Returns the text of the value.
            $vis const fn as_str(self) -> &'static str {
                match self { $(Self::$value => $text,)* }
            }
        }
    )*};
}
pub(crate) use text_enum;

/// As [`text_enum`], for an enum of rows: each value has a text, a value of another enum, and a
/// meaning, which also documents it.
macro_rules! table_enum {
    (
        $(#[$meta:meta])* $vis:vis enum $name:ident {
            $(#[$of_column:meta])* fn $column:ident() -> $of:ident;
            $($value:ident $text:literal $in_column:ident $meaning:literal,)*
        }
    ) => {
        crate::domain::text_enum::text_enum! {
            $(#[$meta])*
            $vis enum $name { $(#[doc = $meaning] $value = $text,)* }
        }

        impl $name {
            $(#[$of_column])*
            $vis const fn $column(self) -> $of {
                match self { $(Self::$value => $of::$in_column,)* }
            }

            /// Returns the meaning in one sentence.
            $vis const fn meaning(self) -> &'static str {
                match self { $(Self::$value => $meaning,)* }
            }
        }
    };
}
pub(crate) use table_enum;
