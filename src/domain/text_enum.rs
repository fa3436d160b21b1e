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
