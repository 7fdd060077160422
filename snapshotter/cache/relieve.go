package cache

import "golang.org/x/sys/unix"

// Relieve removes layers that nobody uses, the oldest first, until the file system has
// at least free bytes for others or none is left, and returns how many went. Kubelet
// removes images to get room: what was kept of them, for when they come back, has to
// go then as well.
func (s *Store) Relieve(free func(total uint64) uint64) int {
	over := func() int64 {
		var st unix.Statfs_t
		if err := unix.Statfs(s.dir, &st); err != nil {
			return 0 // who knows
		}
		size := uint64(st.Bsize)
		want, have := free(st.Blocks*size), st.Bavail*size
		if have >= want {
			return 0
		}
		return int64(want - have)
	}
	s.evicting.Lock()
	gone := s.evictUnused(over)
	s.evicting.Unlock()
	s.tell(gone)
	return len(gone)
}
