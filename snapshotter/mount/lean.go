package mount

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// Lean gives back memory of this process that it hardly needs any more: freed memory,
// and the pages of its program, of which starting has touched nearly all and waiting
// touches few. What is needed again comes from the page cache; holder and daemon are the
// same program. An error is one of /proc or madvise(2) and harms nothing.
func Lean() error {
	debug.FreeOSMemory()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return err
	}
	for _, m := range programPages(string(smaps), program) {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("madvise: %w", errno)
		}
	}
	return nil
}

// mapping is a range of addresses.
type mapping struct{ from, to uintptr }

// programPages are the mappings of program in the text of /proc/PID/smaps, as proc(5)
// describes it, that are read-only and have no page of their own: a program that is
// relocated at its start has written to some that are read-only by now.
func programPages(smaps, program string) []mapping {
	var clean []mapping
	var m mapping
	ours := false
	for line := range strings.Lines(smaps) {
		line = strings.TrimSuffix(line, "\n")
		var next mapping
		var permissions string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &next.from, &next.to, &permissions); n == 3 {
			m, ours = next, (permissions == "r-xp" || permissions == "r--p") && strings.HasSuffix(line, " "+program)
			continue
		}
		if f := strings.Fields(line); ours && len(f) == 3 && f[0] == "Anonymous:" && f[1] == "0" {
			clean = append(clean, m)
		}
	}
	return clean
}
