package toc

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// tocAt is where the TOC of hostileCases begins.
const tocAt = 100000

// hostileCase is a list of entries and what we say about it.
type hostileCase struct {
	name, entries string
	kind          error
}

var sum = `"chunkDigest":"sha256:` + strings.Repeat("ab", 32) + `"`

func reg(name string, size, offset int64, more string) string {
	return fmt.Sprintf(`{"name":%q,"type":"reg","size":%d,"offset":%d,%s%s}`, name, size, offset, sum, more)
}

func chunk(name string, offset, at int64, more string) string {
	return fmt.Sprintf(`{"name":%q,"type":"chunk","offset":%d,"chunkOffset":%d,%s%s}`, name, offset, at, sum, more)
}

func dir(name string) string { return fmt.Sprintf(`{"name":%q,"type":"dir"}`, name) }

func hostileCases() []hostileCase {
	deep := strings.Repeat("x/", 2048)
	return []hostileCase{
		{"nothing", ``, nil},
		{"root", dir("") + `,` + dir("./"), ErrHostile},
		{"roots", dir("./") + `,` + dir("/") + `,` + dir(".") + `,` + dir("a/.."), nil},
		{"root is a file", reg(".", 0, 0, ""), ErrHostile},
		{"leaves the root", dir("a/../.."), ErrHostile},
		{"leaves the root and returns", dir("../a"), ErrHostile},
		{"NUL", `{"name":"a\u0000b","type":"dir"}`, ErrHostile},
		{"not UTF-8", `{"name":"a\ufffd","type":"dir"}`, ErrUnsupported},
		{"lone surrogate", `{"name":"a\ud800","type":"dir"}`, ErrUnsupported},
		{"longest path", dir(deep), nil},
		{"too long path", dir(deep + "y"), ErrLimit},
		{"longest name", dir(strings.Repeat("x", 255)), nil},
		{"too long name", dir("a/" + strings.Repeat("x", 256)), ErrLimit},
		{"longest symlink", `{"name":"a","type":"symlink","linkName":"` + strings.Repeat("x", 4095) + `"}`, nil},
		{"too long symlink", `{"name":"a","type":"symlink","linkName":"` + strings.Repeat("x", 4096) + `"}`, ErrLimit},
		{"empty symlink", `{"name":"a","type":"symlink"}`, ErrHostile},
		{"hard link out", `{"name":"a","type":"hardlink","linkName":"../x"}`, ErrHostile},
		{"unknown type", `{"name":"a","type":"socket"}`, ErrUnsupported},
		{"no type", `{"name":"a"}`, ErrUnsupported},
		{"negative owner", `{"name":"a","type":"dir","uid":-1}`, ErrHostile},
		{"no owner", `{"name":"a","type":"dir","gid":4294967295}`, ErrLimit},
		{"device", `{"name":"a","type":"char","devMajor":4095,"devMinor":1048575}`, nil},
		{"no such device", `{"name":"a","type":"char","devMajor":4096}`, ErrLimit},
		{"xattr without name", `{"name":"a","type":"dir","xattrs":{"":""}}`, ErrHostile},
		{"xattr name too long", `{"name":"a","type":"dir","xattrs":{"user.` + strings.Repeat("x", 251) + `":""}}`, ErrLimit},
		{"largest xattr", `{"name":"a","type":"dir","xattrs":{"user.a":"` + strings.Repeat("AAAA", 21845) + `"}}`, nil},
		{"too large xattr", `{"name":"a","type":"dir","xattrs":{"user.a":"` + strings.Repeat("AAAA", 21846) + `"}}`, ErrLimit},
		{"too large xattrs", `{"name":"a","type":"dir","xattrs":{` + xattrs(5) + `}}`, ErrLimit},

		{"file", reg("a", 5, 0, ""), nil},
		{"negative size", reg("a", -5, 0, ""), ErrHostile},
		{"no digest", `{"name":"a","type":"reg","size":5,"offset":10}`, ErrUnsupported},
		{"no digest needed", `{"name":"a","type":"reg"}`, nil},
		{"other digest", `{"name":"a","type":"reg","size":5,"chunkDigest":"md5:00"}`, ErrUnsupported},
		{"chunks", reg("a", 10, 10, `,"chunkSize":4`) + `,` + chunk("a", 20, 4, `,"chunkSize":4`) + `,` + chunk("a", 30, 8, ``), nil},
		{"size on the last chunk", reg("a", 8, 10, `,"chunkSize":4`) + `,` + chunk("a", 20, 4, `,"chunkSize":4`), nil},
		{"gap", reg("a", 10, 10, `,"chunkSize":4`) + `,` + chunk("a", 20, 5, ``), ErrHostile},
		{"overlap", reg("a", 10, 10, `,"chunkSize":4`) + `,` + chunk("a", 20, 3, ``), ErrHostile},
		{"first chunk not at 0", reg("a", 10, 10, `,"chunkOffset":4`), ErrHostile},
		{"chunk too long", reg("a", 10, 10, `,"chunkSize":11`), ErrHostile},
		{"negative chunk", reg("a", 10, 10, `,"chunkSize":-1`), ErrHostile},
		{"incomplete at the end", reg("a", 10, 10, `,"chunkSize":4`), ErrHostile},
		{"incomplete", reg("a", 10, 10, `,"chunkSize":4`) + `,` + dir("b"), ErrHostile},
		{"chunk of another file", reg("a", 10, 10, `,"chunkSize":4`) + `,` + chunk("b", 20, 4, ``), ErrHostile},
		{"one chunk too many", reg("a", 10, 10, ``) + `,` + chunk("a", 20, 10, ``), ErrHostile},
		{"chunk of nothing", chunk("a", 20, 0, ``), ErrHostile},
		{"huge chunk", reg("a", 64<<20+1, 10, ``), ErrLimit},
		{"huge file", reg("a", 1<<46+1, 10, `,"chunkSize":4096`), ErrLimit},
		{"huge layer", reg("a", 5, 10, "") + `,` + reg("b", 1<<45, 20, `,"chunkSize":4096`), ErrLimit},

		{"digest of the file", `{"name":"a","type":"reg","size":5,"offset":10,"digest":"sha256:` + strings.Repeat("ab", 32) + `"}`, nil},
		{"other digest of the file", `{"name":"a","type":"reg","size":5,"offset":10,"digest":"md5:00"}`, ErrUnsupported},
		{"digest of the file for a chunk", `{"name":"a","type":"reg","size":5,"chunkSize":4,"offset":10,"digest":"sha256:` + strings.Repeat("ab", 32) + `"}`, ErrUnsupported},
		{"zeros", `{"name":"a","type":"reg","size":5,"offset":10,"chunkType":"zeros"}`, nil},
		{"many zeros", `{"name":"a","type":"reg","size":1099511627776,"offset":10,"chunkType":"zeros"}`, nil},
		{"zeros between", reg("a", 10, 10, `,"chunkSize":4`) + `,` + chunk("a", 20, 4, `,"chunkSize":4,"chunkType":"zeros"`) + `,` + chunk("a", 30, 8, ``), nil},
		{"zeros at the TOC", fmt.Sprintf(`{"name":"a","type":"reg","size":5,"offset":%d,"chunkType":"zeros"}`, tocAt), ErrHostile},
		{"too many zeros", reg("a", 10, 10, `,"chunkSize":4`) + `,` + chunk("a", 20, 4, `,"chunkSize":7,"chunkType":"zeros"`), ErrHostile},
		{"zeros before", reg("a", 10, 10, `,"chunkSize":4`) + `,` + chunk("a", 9, 4, `,"chunkType":"zeros"`), ErrHostile},
		{"unknown content", reg("a", 5, 10, `,"chunkType":"ones"`), ErrUnsupported},

		{"at the TOC", reg("a", 5, tocAt, ""), ErrHostile},
		{"before the TOC", reg("a", 5, tocAt-1, ""), nil},
		{"negative offset", reg("a", 5, -1, ""), ErrHostile},
		{"offset goes back", reg("a", 5, 10, "") + `,` + reg("b", 5, 9, ""), ErrHostile},
		{"shared member", reg("a", 5, 10, "") + `,` + reg("b", 5, 10, `,"innerOffset":5`), nil},
		{"shared bytes", reg("a", 5, 10, "") + `,` + reg("b", 5, 10, `,"innerOffset":4`), ErrHostile},
		{"negative inner offset", reg("a", 5, 10, `,"innerOffset":-1`), ErrHostile},
		{"begins with a header", reg("a", 5, 0, `,"innerOffset":512`), nil},
		{"huge member", reg("a", 5, 10, `,"innerOffset":134217728`), ErrLimit},
		{"overflow", reg("a", 5, 10, `,"innerOffset":9223372036854775807`), ErrLimit},
	}
}

// xattrs are n extended attributes of the largest size.
func xattrs(n int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf(`"user.%d":"%s"`, i, strings.Repeat("AAAA", 21845)))
	}
	return strings.Join(list, ",")
}

func TestHostile(t *testing.T) {
	for _, c := range hostileCases() {
		raw, d := packTOC(t, []byte(`{"version":1,"entries":[`+c.entries+`]}`))
		x, err := Parse(raw, d, tocAt)
		if (err == nil) != (c.kind == nil) || !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err == nil {
			checkInvariants(t, x, tocAt)
		} else if x != nil {
			t.Errorf("%s: an index with an error", c.name)
		}
	}
}

func TestLayout(t *testing.T) {
	js := `{"version":1,"entries":[` + strings.Join([]string{
		dir("/b/"), reg("b/one", 5000, 10, `,"chunkSize":4096`), chunk("b/one", 20, 4096, ""),
		reg(".prefetch.landmark", 1, 30, ""), reg("./b//../b/two", 3, 40, ""), reg("b/two", 4096, 40, `,"innerOffset":512`),
		reg("three", 1, 40, `,"innerOffset":9000`), `{"name":"stargz.index.json","type":"reg","size":7,"offset":50,` + sum + `}`,
		reg("b/stargz.index.json", 2, 60, ""), `{"name":"l","type":"hardlink","linkName":"/b/two/"}`,
	}, ",") + `]}`
	raw, d := packTOC(t, []byte(js))
	x, err := Parse(raw, d, tocAt)
	if err != nil {
		t.Fatal(err)
	}
	checkInvariants(t, x, tocAt)
	var got []string
	for _, e := range x.Entries {
		got = append(got, fmt.Sprintf("%s@%d+%d", e.Path, e.Addr, e.Size))
	}
	const want = "b@0+0 b/one@0+5000 b/two@8192+3 b/two@12288+4096 three@16384+1 b/stargz.index.json@20480+2 l@0+0"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
	if e := x.Entries[len(x.Entries)-1]; e.Link != "b/two" {
		t.Errorf("hard link to %q", e.Link)
	}
	got = nil
	for _, m := range x.Members {
		got = append(got, fmt.Sprintf("%d+%d:%d+%d", m.Offset, m.Size, m.First, m.Count))
	}
	// Members without content of the image end the one before them.
	if s := strings.Join(got, " "); s != "10+10:0+1 20+10:1+1 40+10:2+3 60+99940:5+1" {
		t.Errorf("members %s", s)
	}
	for _, c := range []struct {
		addr, n  int64
		from, to int
	}{{0, 1, 0, 1}, {0, 4097, 0, 2}, {4096, 1, 1, 2}, {5000, 100, 0, 0}, {8192, 1, 2, 3}, {8195, 4093, 0, 0}, {0, 1 << 40, 0, 4}, {1 << 40, 1, 0, 0}} {
		if from, to := x.MemberRange(c.addr, c.n); from != c.from || to != c.to {
			t.Errorf("members of %d+%d: [%d, %d)", c.addr, c.n, from, to)
		}
	}
}

func TestTooManyEntries(t *testing.T) {
	b := newBuilder(0, 1)
	b.entries = maxEntries
	if err := b.add(&rawEntry{name: []byte("a"), kind: kind(Dir)}); !errors.Is(err, ErrLimit) {
		t.Fatal(err)
	}
}

// Equal attributes of neighbours share memory.
func TestSharedXattrs(t *testing.T) {
	label := `,"xattrs":{"security.selinux":"` + b64("label") + `"}}`
	d := strings.TrimSuffix(dir("a"), "}") + label + `,` + dir("b") + `,` + strings.TrimSuffix(dir("c"), "}") + label
	x, err := parseJSON(strings.NewReader(`{"version":1,"entries":[`+d+`]}`), newBuilder(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	x.Entries[0].Xattrs["probe"] = nil
	if _, ok := x.Entries[2].Xattrs["probe"]; !ok || x.Entries[1].Xattrs != nil {
		t.Error("the maps are not shared")
	}
}
