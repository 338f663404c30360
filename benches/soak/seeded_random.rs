//! Pseudorandom numbers that are the same in every run with the same seed.

/// A SplitMix64 generator.
#[derive(Clone)]
pub(crate) struct SeededRandom(u64);

impl SeededRandom {
    /// Creates the generator of one client of a run.
    pub(crate) fn new(seed: u64, client: u64) -> Self {
        let mut random = Self(seed ^ client.wrapping_mul(0xd134_2543_de82_ef95));
        random.next_u64();
        random
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `limit`, or 0 if `limit` is 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next_u64() % limit.max(1) as u64) as usize
    }

    /// Returns one of `among`.
    pub(crate) fn choose<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())]
    }

    /// Returns between 1 and `max_len` random bytes.
    pub(crate) fn random_bytes(&mut self, max_len: usize) -> Vec<u8> {
        let bytes = 1 + self.below(max_len);
        (0..bytes).map(|_| self.next_u64() as u8).collect()
    }
}
