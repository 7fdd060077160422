package encode

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// ent is one entry of a test archive.
type ent struct {
	tar.Header
	body []byte
}

// makeTar writes the entries with archive/tar.
func makeTar(t testing.TB, ents ...ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range ents {
		h := e.Header
		h.Size = int64(len(e.body))
		if h.ModTime.IsZero() && h.Typeflag != tar.TypeXGlobalHeader {
			h.ModTime = time.Unix(1700000000, 0)
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("header of %q: %v", h.Name, err)
		}
		if _, err := w.Write(e.body); err != nil {
			t.Fatalf("body of %q: %v", h.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// noise returns n bytes that hardly compress, the same for the same seed.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b) // never fails
	return b
}

func reg(name string, body []byte) ent {
	return ent{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body}
}

func dir(name string) ent {
	return ent{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, nil}
}

func link(name, target string) ent {
	return ent{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}, nil}
}

func symlink(name, target string) ent {
	return ent{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil}
}

// everything is a layer with all that a TOC can say.
func everything() []ent {
	long := strings.Repeat("long-directory-name/", 12)
	owned := reg("owned", []byte("x"))
	owned.Uid, owned.Gid, owned.Uname, owned.Gname = 1000, 4294967294, "someone", "somegroup"
	setid := reg("setid", []byte("y"))
	setid.Mode = 0o6755
	xattr := reg("with-xattrs", []byte("z"))
	xattr.PAXRecords = map[string]string{
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00",
		"SCHILY.xattr.user.empty":          "",
		"VENDOR.unknown":                   "kept",
	}
	xattr.Format = tar.FormatPAX
	subsec := reg("sub-second", nil)
	subsec.ModTime, subsec.Format = time.Unix(1700000001, 123456789), tar.FormatPAX
	epoch := reg("epoch", []byte("e"))
	epoch.ModTime = time.Unix(0, 0)
	old := reg("before-1970", []byte("o"))
	old.ModTime, old.Format = time.Unix(-5, 0), tar.FormatPAX
	gnu := reg(long+"gnu", []byte("gnu"))
	gnu.Format = tar.FormatGNU
	char := ent{tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3, Mode: 0o666}, nil}
	block := ent{tar.Header{Typeflag: tar.TypeBlock, Name: "dev/sda", Devmajor: 8, Devminor: 300, Mode: 0o660}, nil}
	fifo := ent{tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600}, nil}
	global := ent{tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "c"}}, nil}
	ents := []ent{
		dir("./"), global, dir("dev/"), char, block, fifo,
		reg("empty", nil), owned, setid, xattr, subsec, epoch, old, gnu,
		reg(long+"pax", []byte("pax")),
		reg("exactly-one-chunk", noise(1, 256<<10)),
		reg("one-more", noise(2, 256<<10+1)),
		reg("large", noise(3, 3*256<<10+777)),
		link("hard", "large"), link("hard-to-hard", "./hard"), link("forward", "later"),
		symlink("sym", "../large"), symlink("äöü-名前", "/abs<&>"),
		reg("/absolute", []byte("abs")), reg("./dot", []byte("dot")),
		reg("later", []byte("later")), reg("dir.d/implicit/parent", []byte("p")),
		reg("twice", []byte("first")), reg("twice", []byte("second")),
		reg(".wh.gone", nil), reg("dir.d/.wh..wh..opq", nil),
		reg("a\"quote\\and\nnewline", []byte("q")),
	}
	for i := range 60 { // more than one group
		ents = append(ents, reg(fmt.Sprintf("small/%03d", i), noise(uint64(i), i*90)))
	}
	for i := range 150 { // a run of headers longer than a member's tail
		ents = append(ents, dir(fmt.Sprintf("many/%04d/", i)))
	}
	return append(ents, reg("last", []byte("last")))
}
