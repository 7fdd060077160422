package mount

import (
	"os"
	"path/filepath"
	"strings"
)

// readAheadKiB is what a mount reads ahead, in KiB. More does not pay while layers
// are partial: large read-ahead under mmap fetches what nobody touches, and the
// daemon prefetches by itself when it sees a sequence.
const readAheadKiB = "128"

// localReadAheadKiB is what a mount of complete files reads ahead. Sequential and random
// reads, small files and mappings, cold, by their time on overlayfs: 0.8 to 1.1, with the
// kernel's 128 up to 1.8.
const localReadAheadKiB = "1024"

// readAheads lists the read-ahead settings of all file-backed EROFS mounts. They
// are numbered by a counter that nothing ties to the mount, so the new one is
// found by looking before and after.
func readAheads() map[string]bool {
	names, _ := filepath.Glob("/sys/class/bdi/erofs-*/read_ahead_kb") // the pattern is good
	set := make(map[string]bool, len(names))
	for _, n := range names {
		set[n] = true
	}
	return set
}

// setReadAhead sets what is new since before. A distribution may have changed the default
// of the kernel. Failing to is not worth a word: reads are right with any setting.
func setReadAhead(before map[string]bool, kib string) {
	for name := range readAheads() {
		if before[name] {
			continue
		}
		if b, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(b)) != kib {
			_ = os.WriteFile(name, []byte(kib), 0)
		}
	}
}
