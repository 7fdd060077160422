package profile

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/apparate/apparate/api/profile"
	"github.com/apparate/apparate/converter/encode"
)

// tocMember is a TOC as it is in a layer.
func tocMember(t testing.TB, header, json string) []byte {
	t.Helper()
	var b bytes.Buffer
	zw, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(zw)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: header, Size: int64(len(json))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(tw, json); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func digestOf(s string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s))) }

// everything wants every chunk.
func everything([32]byte) bool { return true }

func TestTOC(t *testing.T) {
	sum := func(c string) string { return digestOf(c) }
	json := `{"version":1,"x":{"y":[1]},"entries":[
	{"name":"d/","type":"dir"},
	{"name":"f","type":"reg","size":500,"offset":10,"chunkSize":300,"chunkDigest":"` + sum("1") + `"},
	{"name":"f","type":"chunk","offset":90,"chunkOffset":300,"chunkDigest":"` + sum("2") + `"},
	{"name":"g","type":"reg","size":7,"offset":90,"innerOffset":200,"chunkDigest":"` + sum("3") + `"},
	{"name":"same","type":"reg","size":7,"offset":200,"chunkDigest":"` + sum("3") + `"},
	{"name":"behind","type":"reg","size":7,"offset":1000,"chunkDigest":"` + sum("4") + `"},
	{"name":"huge","type":"reg","size":99999999,"offset":300,"chunkDigest":"` + sum("5") + `"},
	{"name":"minus","type":"reg","size":5,"offset":-3,"innerOffset":-1,"chunkDigest":"` + sum("6") + `"},
	{"name":"bad","type":"reg","size":5,"offset":310,"chunkDigest":"sha256:12"},
	{"name":"empty","type":"reg"}]}`
	r := tocReader{end: 1000, wanted: everything, names: true}
	got, err := r.read(bytes.NewReader(tocMember(t, encode.TOCName, json)), digestOf(json))
	if err != nil {
		t.Fatal(err)
	}
	z := tocReader{end: 1000, wanted: everything, names: true}
	if chunked, err := z.read(bytes.NewReader(zstdFrame(t, json)), digestOf(json)); err != nil || !reflect.DeepEqual(chunked, got) {
		t.Errorf("of zstd:chunked: %v, %v", chunked, err)
	}
	want := map[[32]byte]Place{
		sha256.Sum256([]byte("1")): {Size: 300, Name: "f", offset: 10, end: 90},
		sha256.Sum256([]byte("2")): {Size: 200, Name: "f", offset: 90, end: 200},
		sha256.Sum256([]byte("3")): {Size: 7, Name: "g", offset: 90, end: 200, inner: 200},
	}
	if len(got) != len(want) {
		t.Errorf("%v", got)
	}
	for sum, p := range want {
		if got[sum] != p {
			t.Errorf("%x is at %+v, want %+v", sum[:4], got[sum], p)
		}
	}
}

func TestTOCRefused(t *testing.T) {
	good := `{"version":1,"entries":[]}`
	// A decoder holds an entry whole: one without end must not fill the memory.
	endless := `{"entries":[{"name":"` + strings.Repeat("x", 4*maxEntry) + `"}]}`
	for name, c := range map[string]struct{ member, json string }{
		"another file":     {"passwd", good},
		"another digest":   {encode.TOCName, good + " "},
		"no object":        {encode.TOCName, `[]`},
		"no list":          {encode.TOCName, `{"entries":1}`},
		"cut short":        {encode.TOCName, `{"entries":[{"name":"x"`},
		"an endless entry": {encode.TOCName, endless},
	} {
		digest := digestOf(c.json)
		if name == "another digest" {
			digest = digestOf(good)
		}
		r := tocReader{end: 1000, wanted: everything}
		if got, err := r.read(bytes.NewReader(tocMember(t, c.member, c.json)), digest); err == nil {
			t.Errorf("%s: read as %v", name, got)
		}
	}
	r := tocReader{end: 1000, wanted: everything}
	if _, err := r.read(strings.NewReader("no gzip"), digestOf("")); err == nil {
		t.Error("what is no gzip was read")
	}
}

// Whatever a TOC says, what is kept of it is inside the layer and within the limits.
func FuzzTOC(f *testing.F) {
	f.Add(`{"version":1,"entries":[{"name":"f","type":"reg","size":500,"offset":10,"chunkSize":300,"chunkDigest":"` + digestOf("1") + `"},` +
		`{"name":"f","type":"chunk","offset":90,"chunkOffset":300,"chunkDigest":"` + digestOf("2") + `"}]}`)
	f.Add(`{"entries":[{"type":"chunk","offset":9223372036854775807,"chunkSize":9223372036854775807,"chunkDigest":"` + digestOf("1") + `"}]}`)
	f.Add(`{"entries":[{"type":"reg","size":5,"chunkOffset":-9223372036854775808,"chunkDigest":"` + digestOf("1") + `"}]}`)
	f.Add(`{"entries":[],"entries":[{}]}`)
	f.Fuzz(func(t *testing.T, json string) {
		r := tocReader{end: 1000, wanted: everything}
		got, err := r.read(bytes.NewReader(tocMember(t, encode.TOCName, json)), digestOf(json))
		if err != nil {
			return
		}
		for _, p := range got {
			if p.Size <= 0 || p.Size > profile.MaxChunk || p.offset < 0 || p.end > 1000 || p.end <= p.offset || p.inner < 0 || p.inner > maxMember {
				t.Errorf("%+v", p)
			}
		}
	})
}

// zstdFrame compresses text.
func zstdFrame(t testing.TB, text string) []byte {
	t.Helper()
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return zw.EncodeAll([]byte(text), nil)
}

// Members that are not what the TOC says are errors, and chunks may overlap.
func TestUnpack(t *testing.T) {
	content := []byte("0123456789")
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	if _, err := zw.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	testUnpack(t, b.Bytes())
	testUnpack(t, zstdFrame(t, string(content)))
}

// testUnpack unpacks a member with ten digits.
func testUnpack(t *testing.T, packed []byte) {
	t.Helper()
	at := func(inner, size int64, as string) *piece {
		return &piece{Planned: Planned{Sum: sha256.Sum256([]byte(as)), Size: size}, place: Place{inner: inner, Size: size}}
	}
	m := member{pieces: []*piece{at(2, 5, "23456"), at(2, 8, "23456789"), at(4, 1, "4")}}
	if err := m.unpack(append(bytes.Clone(packed), "behind"...)); err != nil {
		t.Fatal(err)
	}
	if string(m.pieces[1].content) != "23456789" || string(m.pieces[2].content) != "4" {
		t.Errorf("%q %q", m.pieces[1].content, m.pieces[2].content)
	}
	for name, p := range map[string]*piece{"other content": at(2, 5, "x"), "beyond the end": at(6, 5, "6789"), "far beyond": at(600, 5, "6789")} {
		bad := member{pieces: []*piece{p}}
		if bad.unpack(packed) == nil {
			t.Errorf("%s: unpacked", name)
		}
	}
	if bad := (member{pieces: []*piece{at(2, 5, "23456")}}); bad.unpack(packed[:8]) == nil || bad.unpack(nil) == nil {
		t.Error("a member that is cut short was unpacked")
	}
}
