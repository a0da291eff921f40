//! Lock classes, between which the order is declared.
//!
//! A class is a type. All locks of one purpose share it, as in the kernel's lockdep. The run-time checker identifies a
//! class by its [`ClassKey`].

use std::sync::{Mutex, OnceLock};

/// The class of a lock, declared with [`lock_classes!`](crate::lock_classes).
pub trait Class: 'static {
    /// Returns the key by which the run-time checker identifies this class.
    fn key() -> &'static ClassKey;
}

/// A class at the end of the order. Its locks may be taken wherever no other leaf lock is held, and no lock may be taken
/// under them. Taking one returns a guard and no token, so the compiler enforces the second rule.
pub trait Leaf: Class {}

/// A subclass of `Outer` for declared nesting. A lock of class `Outer` may be taken as this subclass while another
/// instance of `Outer` is held, from a lower rank to a higher one, as with the kernel's `mutex_lock_nested`.
pub trait NestedIn<Outer: Class>: Class {}

/// A place in the order without a lock. A token at such a place determines which locks a callback can take. Declared
/// with `place Name;` in [`lock_classes!`](crate::lock_classes).
pub trait Place: 'static {}

/// Places in the order where a thread may wait or allocate: all places except an
/// [`AtomicContext`](crate::AtomicContext).
pub trait MayWait {}

/// A class as the checker knows it: a name and, once used, a small number.
pub struct ClassKey {
    name: &'static str,
    leaf: bool,
    irq: bool,
    id: OnceLock<u32>,
}

static REGISTRY: Mutex<Vec<&'static ClassKey>> = Mutex::new(Vec::new());

/// Two classes are equal only if they are the same class, even if their names are equal.
impl PartialEq for ClassKey {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}
impl Eq for ClassKey {}

impl ClassKey {
    /// Makes a key. `name` is unique in the process. `leaf`: no lock may be taken under this class.
    pub const fn new(name: &'static str, leaf: bool) -> Self {
        Self { name, leaf, irq: false, id: OnceLock::new() }
    }

    /// Marks the class as one whose locks are always taken with interrupts off, as with `spin_lock_irqsave`.
    pub const fn with_interrupts_off(mut self) -> Self {
        self.irq = true;
        self
    }

    /// Returns the name with which the class was declared.
    pub fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn is_leaf(&self) -> bool {
        self.leaf
    }

    pub(crate) fn has_interrupts_off(&self) -> bool {
        self.irq
    }

    /// Returns the class's number, which is assigned on first use.
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

    /// Returns how many classes have a number.
    pub(crate) fn count() -> u32 {
        REGISTRY.lock().unwrap_or_else(|e| e.into_inner()).len() as u32
    }
}

/// Declares lock classes and places.
///
/// * `pub class Name = "name";` declares a class.
/// * `pub class Name = "name" nested in Outer;` declares a subclass for [nesting](crate::NestedIn).
/// * `pub leaf Name = "name";` declares a [leaf](crate::Leaf) class.
/// * `pub leaf irq Name = "name";` declares a leaf class whose locks are always taken with interrupts off, so that
///   [interrupt handlers](crate::Locked::interrupt) may take them.
/// * `pub place Name;` declares a [place](crate::Place) without a lock.
/// * `pub list name;`, before all others, makes a function of that name, which returns the classes that are not leaves
///   in the order of their declaration.
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
///     /// A second port, taken while one is held: from the lower rank to the higher.
///     pub class PortNested = "port, nested" nested in Port;
///     /// The place of the callbacks of ports.
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

/// Declares the lock order: `root First;`, then one line `Outer => Inner;` for each edge. Edges are transitive. An edge
/// that would close a cycle does not compile.
///
/// `First` comes after [`Unlocked`](crate::Unlocked), the place where no lock is held. Each class may be on the right of
/// one edge only: the order is a tree. This lets the compiler derive transitivity. For an example see [`lock_classes!`](crate::lock_classes).
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
