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

// limitReadAhead sets what is new since before. The default of the kernel is the
// same; a distribution may have changed it. Failing to is not worth a word: reads
// are right with any setting.
func limitReadAhead(before map[string]bool) {
	for name := range readAheads() {
		if before[name] {
			continue
		}
		if b, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(b)) != readAheadKiB {
			_ = os.WriteFile(name, []byte(readAheadKiB), 0)
		}
	}
}
