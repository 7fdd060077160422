package tree

import (
	"testing"

	"github.com/apparate/apparate/snapshotter/toc"
)

// FuzzCheck: Check says what Merge says.
func FuzzCheck(f *testing.F) {
	f.Add([]byte("a layer of some kind"))
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16})
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, x := range randomLayers(data) {
			_, want := Merge([]*toc.Index{x}, true)
			got := Check(x)
			if (got == nil) != (want == nil) || want != nil && got.Error() != want.Error() {
				t.Fatalf("Check says %v, Merge %v, of %+v", got, want, x.Entries)
			}
		}
	})
}

// TestCheck has what a fuzzer is unlikely to meet.
func TestCheck(t *testing.T) {
	reg := func(path string) toc.Entry { return toc.Entry{Path: path, Type: toc.Reg} }
	dir := func(path string) toc.Entry { return toc.Entry{Path: path, Type: toc.Dir} }
	link := func(path, to string) toc.Entry { return toc.Entry{Path: path, Type: toc.Hardlink, Link: to} }
	null := func(path string) toc.Entry { return toc.Entry{Path: path, Type: toc.Char} }
	for name, c := range map[string]struct {
		entries []toc.Entry
		good    bool // to Merge
		obvious bool
	}{
		"plain":                {[]toc.Entry{dir(""), dir("a"), reg("a/b"), reg("c/d")}, true, true},
		"link":                 {[]toc.Entry{reg("a/b"), link("c", "a/b"), link("d", "c")}, true, true},
		"whiteouts":            {[]toc.Entry{reg(".wh.a"), reg("b/.wh..wh..opq"), reg("a")}, true, true},
		"link before":          {[]toc.Entry{link("c", "a"), reg("a")}, false, false},
		"link to nothing":      {[]toc.Entry{link("c", "a")}, false, false},
		"link to the root":     {[]toc.Entry{dir(""), link("c", "")}, false, false},
		"link to itself":       {[]toc.Entry{reg("c"), link("c", "c")}, false, false},
		"link over its parent": {[]toc.Entry{reg("c/a"), link("c", "c/a")}, false, false},
		"link to a directory":  {[]toc.Entry{dir("a"), link("c", "a")}, false, false},
		"link to a whiteout":   {[]toc.Entry{reg(".wh.a"), link("c", ".wh.a")}, false, false},
		"link to what went":    {[]toc.Entry{reg("a"), null("a"), link("c", "a")}, false, false},
		"through a file":       {[]toc.Entry{reg("a"), reg("a/b")}, false, false},
		"file over directory":  {[]toc.Entry{reg("a/b"), reg("a")}, true, false},
		"far through a file":   {[]toc.Entry{reg("a"), reg("a/b/c/d")}, false, false},
		"whiteout of nothing":  {[]toc.Entry{reg("a/.wh.")}, false, false},
		"whiteout of parent":   {[]toc.Entry{dir("a/.wh...")}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			x := &toc.Index{Entries: c.entries}
			_, want := Merge([]*toc.Index{x}, true)
			if got := Check(x); (want == nil) != c.good || (got == nil) != c.good {
				t.Errorf("Check: %v, Merge: %v", got, want)
			}
			k := checker{parents: map[string]struct{}{}}
			if k.obvious(x.Entries) != c.obvious {
				t.Errorf("obvious: %v", !c.obvious)
			}
		})
	}
}
