//! Everything that is left to chance, from one number.

use std::time::Duration;

/// A small generator (SplitMix64): the same seed, the same throws.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// One of several independent rows of throws of a seed.
    pub fn new(seed: u64, row: u64) -> Self {
        let mut dice = Self(seed ^ row.wrapping_mul(0xd6e8_feb8_6659_fd93));
        dice.throw();
        dice
    }

    pub fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to `bound`, without `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.throw() % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    pub fn millis(&mut self, low: usize, high: usize) -> Duration {
        Duration::from_millis(u64::try_from(self.between(low, high)).unwrap())
    }

    /// True in so many of a hundred throws.
    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub fn shuffle<T>(&mut self, of: &mut [T]) {
        for last in (1..of.len()).rev() {
            of.swap(last, self.below(last + 1));
        }
    }
}

/// Cards that are dealt until none is left, then shuffled again: chance without a kind that never
/// comes.
#[derive(Debug)]
pub struct Deck<T> {
    all: Vec<T>,
    left: Vec<T>,
}

impl<T: Copy> Deck<T> {
    /// Each card as often as it is said.
    pub fn new(cards: &[(T, usize)]) -> Self {
        let all = cards.iter().flat_map(|(card, count)| std::iter::repeat_n(*card, *count)).collect();
        Self { all, left: Vec::new() }
    }

    pub fn deal(&mut self, dice: &mut Dice) -> T {
        if self.left.is_empty() {
            self.left = self.all.clone();
            dice.shuffle(&mut self.left);
        }
        self.left.pop().unwrap()
    }
}
