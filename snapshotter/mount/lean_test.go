package mount

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"
)

// TestProgramPages: only what can be read again from the program is given back.
func TestProgramPages(t *testing.T) {
	const smaps = `00400000-01234000 r-xp 00000000 fe:00 4242    /usr/bin/apparate
Size:              14544 kB
Rss:               12000 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
01234000-02234000 r--p 00e34000 fe:00 4242    /usr/bin/apparate
Anonymous:             0 kB
02234000-02300000 r--p 01e34000 fe:00 4242    /usr/bin/apparate
Anonymous:             4 kB
02300000-02400000 rw-p 01f00000 fe:00 4242    /usr/bin/apparate
Anonymous:             0 kB
03000000-03100000 r-xp 00000000 fe:00 4243    /usr/bin/apparate2
Anonymous:             0 kB
c000000000-c000400000 rw-p 00000000 00:00 0 
Anonymous:           400 kB
7ffff000-80000000 r-xp 00000000 00:00 0       [vdso]
Anonymous:             0 kB
`
	want := []mapping{{0x400000, 0x1234000}, {0x1234000, 0x2234000}}
	if got := programPages(smaps, "/usr/bin/apparate"); !slices.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	if got := programPages("nonsense\n\n00-zz r-xp\n", "/usr/bin/apparate"); len(got) != 0 {
		t.Errorf("of nonsense: %x", got)
	}
}

// TestLean: this process goes on, with fewer pages of its program.
func TestLean(t *testing.T) {
	pages := func() int {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`RssFile:\s+(\d+) kB`).FindSubmatch(status)
		if m == nil {
			t.Fatalf("no RssFile in %s", status)
		}
		n, err := strconv.Atoi(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := pages()
	if err := Lean(); err != nil {
		t.Fatal(err)
	}
	if after := pages(); after >= before {
		t.Errorf("%d KiB of files are mapped, before it were %d", after, before)
	}
}
