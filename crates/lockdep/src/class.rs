//! Lock classes: what the order is made of.
//!
//! A class is a type; all locks of one purpose share it, as in the kernel's lockdep. Its
//! [`ClassKey`] is what the run-time checker knows it by.

use std::sync::{Mutex, OnceLock};

/// The class of a lock. Declared with [`lock_classes!`](crate::lock_classes).
pub trait Class: 'static {
    /// The key the run-time checker knows this class by.
    fn key() -> &'static ClassKey;
}

/// A class that stands at the end of the order: it may be taken wherever nothing of its kind is
/// held, and nothing may be taken under it. Taking one gives a guard and no token, so the compiler
/// keeps the second half of that promise.
pub trait Leaf: Class {}

/// `Self` is a subclass of `Outer` for declared nesting: a lock of class `Outer` may be taken under
/// this name while another instance of `Outer` is held, from a lower rank to a higher one.
pub trait NestedIn<Outer: Class>: Class {}

/// A place in the order that is no lock's: where callbacks of a kind stand, so that their tokens say
/// what they can reach. Declared with `place Name;` in [`lock_classes!`](crate::lock_classes).
pub trait Place: 'static {}

/// Places in the order where a thread may wait or allocate: everywhere but in an
/// [`AtomicContext`](crate::AtomicContext).
pub trait MayWait {}

/// A class as the checker sees it: a name and, once used, a small number.
pub struct ClassKey {
    name: &'static str,
    leaf: bool,
    irq: bool,
    id: OnceLock<u32>,
}

static REGISTRY: Mutex<Vec<&'static ClassKey>> = Mutex::new(Vec::new());

/// A class is itself and no other, whatever its name.
impl PartialEq for ClassKey {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}
impl Eq for ClassKey {}

impl ClassKey {
    /// A key with a name that is unique in the process. `leaf`: nothing may be taken under it.
    pub const fn new(name: &'static str, leaf: bool) -> Self {
        Self { name, leaf, irq: false, id: OnceLock::new() }
    }

    /// The same of a class whose locks are taken with interrupts off, wherever they are taken.
    pub const fn with_interrupts_off(mut self) -> Self {
        self.irq = true;
        self
    }

    /// The name the class was declared with.
    pub fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn is_leaf(&self) -> bool {
        self.leaf
    }

    pub(crate) fn has_interrupts_off(&self) -> bool {
        self.irq
    }

    /// The class's number, given on first use.
    pub(crate) fn id(&'static self) -> u32 {
        *self.id.get_or_init(|| {
            let mut registry = REGISTRY.lock().unwrap_or_else(|e| e.into_inner());
            registry.push(self);
            (registry.len() - 1) as u32
        })
    }

    pub(crate) fn by_id(id: u32) -> &'static ClassKey {
        REGISTRY.lock().unwrap_or_else(|e| e.into_inner())[id as usize]
    }

    /// How many classes have a number.
    pub(crate) fn count() -> u32 {
        REGISTRY.lock().unwrap_or_else(|e| e.into_inner()).len() as u32
    }
}

/// Declares lock classes: `pub Name = "name";` or, for a class nothing may be taken under,
/// `pub leaf Name = "name";`, or of these for one that [interrupts](crate::Locked::interrupt) may take, as it is always taken with interrupts
/// off, `pub leaf irq Name = "name";`, or for declared nesting `pub Name = "name" nested in Outer;`. With
/// `pub list name;` before them, a function of that name lists those that are no leaves, in the order in which they are declared.
///
/// ```
/// use lockdep::{Class, ClassKey, lock_classes, lock_order};
///
/// lock_classes! {
///     /// The classes that have a place in the order.
///     pub list ordered;
///
///     pub class Device = "device";
///     pub class Port = "port";
///     /// A second port, while one is held: from the lower rank to the higher.
///     pub class PortNested = "port, nested" nested in Port;
///     /// Where the callbacks of ports stand.
///     pub place PortCallback;
///     pub leaf Counters = "counters";
///     pub leaf irq Events = "events";
/// }
///
/// lock_order! {
///     root Device;
///     Device => Port;
///     Port => PortNested;
///     PortNested => PortCallback;
/// }
///
/// let names: Vec<_> = ordered().into_iter().map(ClassKey::name).collect();
/// assert_eq!(names, ["device", "port", "port, nested"]);
/// assert_eq!(Events::key().name(), "events");
/// ```
#[macro_export]
macro_rules! lock_classes {
    () => {};
    ($(#[$doc:meta])* $vis:vis list $list:ident; $($classes:tt)*) => {
        $(#[$doc])*
        $vis fn $list() -> ::std::vec::Vec<&'static $crate::ClassKey> {
            let mut list = ::std::vec::Vec::new();
            $crate::lock_classes!(@list list $($classes)*);
            list
        }
        $crate::lock_classes!($($classes)*);
    };
    (@list $list:ident) => {};
    (@list $list:ident $(#[$doc:meta])* $vis:vis class $name:ident = $text:literal $(nested in $outer:ty)?; $($rest:tt)*) => {
        $list.push(<$name as $crate::Class>::key());
        $crate::lock_classes!(@list $list $($rest)*);
    };
    (@list $list:ident $(#[$doc:meta])* $vis:vis leaf irq $name:ident = $text:literal; $($rest:tt)*) => {
        $crate::lock_classes!(@list $list $($rest)*);
    };
    (@list $list:ident $(#[$doc:meta])* $vis:vis $kind:ident $name:ident $(= $text:literal)?; $($rest:tt)*) => {
        $crate::lock_classes!(@list $list $($rest)*);
    };
    ($(#[$doc:meta])* $vis:vis leaf irq $name:ident = $text:literal; $($rest:tt)*) => {
        $crate::lock_classes!(@class [$(#[$doc])*] $vis $name $crate::ClassKey::new($text, true).with_interrupts_off());
        impl $crate::Leaf for $name {}
        $crate::lock_classes!($($rest)*);
    };
    ($(#[$doc:meta])* $vis:vis leaf $name:ident = $text:literal; $($rest:tt)*) => {
        $crate::lock_classes!(@class [$(#[$doc])*] $vis $name $crate::ClassKey::new($text, true));
        impl $crate::Leaf for $name {}
        $crate::lock_classes!($($rest)*);
    };
    ($(#[$doc:meta])* $vis:vis class $name:ident = $text:literal nested in $outer:ty; $($rest:tt)*) => {
        $crate::lock_classes!(@class [$(#[$doc])*] $vis $name $crate::ClassKey::new($text, false));
        impl $crate::NestedIn<$outer> for $name {}
        $crate::lock_classes!($($rest)*);
    };
    ($(#[$doc:meta])* $vis:vis class $name:ident = $text:literal; $($rest:tt)*) => {
        $crate::lock_classes!(@class [$(#[$doc])*] $vis $name $crate::ClassKey::new($text, false));
        $crate::lock_classes!($($rest)*);
    };
    ($(#[$doc:meta])* $vis:vis place $name:ident; $($rest:tt)*) => {
        $(#[$doc])*
        #[derive(Debug)]
        $vis enum $name {}
        impl $crate::Place for $name {}
        impl $crate::MayWait for $name {}
        $crate::lock_classes!($($rest)*);
    };
    (@class [$(#[$doc:meta])*] $vis:vis $name:ident $key:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        $vis enum $name {}
        impl $crate::Class for $name {
            #[inline]
            fn key() -> &'static $crate::ClassKey {
                static KEY: $crate::ClassKey = $key;
                &KEY
            }
        }
        impl $crate::MayWait for $name {}
    };
}

/// Declares the order: `root First;`, then one `Outer => Inner;` a line. Edges are transitive; an edge
/// that would close a cycle does not compile.
///
/// `First` comes after [`Unlocked`](crate::Unlocked), the place where nothing is held. Each class may
/// stand on the right of one edge only (the order is a tree), which is what lets the compiler work out
/// transitivity. There is an example at [`lock_classes!`](crate::lock_classes).
#[macro_export]
macro_rules! lock_order {
    (root $first:ty; $($before:ty => $after:ty;)*) => {
        impl $crate::LockAfter<$crate::Unlocked> for $first {}
        $(
            impl $crate::LockAfter<$before> for $after {}
            $crate::__private::impl_transitive_lock_order!($before => $after);
        )*
    };
}
