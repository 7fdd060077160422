package toc

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"
	"unicode/utf8"

	"github.com/containerd/stargz-snapshotter/estargz"
)

// decodeAll decodes js with our scanner, reading it in the way that wrap says.
func decodeAll(js []byte, wrap func(io.Reader) io.Reader) ([]rawEntry, error) {
	var out []rawEntry
	s := newScanner(wrap(bytes.NewReader(js)))
	err := decode(s, func(e *rawEntry) error {
		c := *e
		c.name, c.link, c.fileDigest = bytes.Clone(e.name), bytes.Clone(e.link), bytes.Clone(e.fileDigest)
		if !utf8.Valid(c.name) || !utf8.Valid(c.link) || !utf8.Valid(c.fileDigest) {
			return errNotUTF8
		}
		for k := range e.xattrs {
			if !utf8.ValidString(k) {
				return errNotUTF8
			}
		}
		out = append(out, c)
		return nil
	})
	return out, err
}

var errNotUTF8 = errors.New("not UTF-8")

func whole(r io.Reader) io.Reader { return r }

// referenceAll does the same with encoding/json.
func referenceAll(js []byte) ([]rawEntry, error) {
	if !json.Valid(js) {
		return nil, errors.New("not JSON")
	}
	var top map[string]json.RawMessage
	if err := json.Unmarshal(js, &top); err != nil || top == nil {
		return nil, fmt.Errorf("no object: %w", err)
	}
	var list []map[string]json.RawMessage
	if raw, ok := top["entries"]; ok {
		if err := json.Unmarshal(raw, &list); err != nil || list == nil {
			return nil, fmt.Errorf("no list: %w", err)
		}
	}
	var out []rawEntry
	for _, fields := range list {
		if fields == nil {
			return nil, errors.New("null entry")
		}
		e, err := referenceEntry(fields)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	var version int64
	if raw, ok := top["version"]; ok {
		if err := json.Unmarshal(raw, &version); err != nil {
			return nil, err
		}
	}
	if version != 1 {
		return nil, errors.New("version")
	}
	return out, nil
}

func referenceEntry(fields map[string]json.RawMessage) (e rawEntry, err error) {
	get := func(key string, v any) {
		if raw, ok := fields[key]; ok {
			err = errors.Join(err, json.Unmarshal(raw, v))
		}
	}
	var name, link, typ, modtime, chunkDigest string
	get("name", &name)
	get("linkName", &link)
	get("type", &typ)
	get("modtime", &modtime)
	get("chunkDigest", &chunkDigest)
	for key, v := range map[string]*int64{
		"size": &e.size, "mode": &e.mode, "uid": &e.uid, "gid": &e.gid, "offset": &e.offset, "innerOffset": &e.inner,
		"devMajor": &e.devMajor, "devMinor": &e.devMinor, "chunkOffset": &e.chunkOffset, "chunkSize": &e.chunkSize,
	} {
		get(key, v)
	}
	e.name, e.link = []byte(name), []byte(link)
	var of, fileDigest string
	if raw := fields["chunkType"]; raw != nil && (json.Unmarshal(raw, &of) != nil || of != "") || string(raw) == "null" {
		e.content = contentUnknown
		if of == "zeros" {
			e.content = contentZeros
		}
	}
	if json.Unmarshal(fields["digest"], &fileDigest) == nil {
		e.fileDigest = []byte(fileDigest)
	}
	for i, k := range []string{"dir", "reg", "symlink", "hardlink", "char", "block", "fifo", "chunk"} {
		if typ == k {
			e.kind = kind(i + 1)
		}
	}
	if modtime != "" {
		when, terr := time.Parse(time.RFC3339, modtime)
		err = errors.Join(err, terr)
		e.sec, e.nsec = when.Unix(), uint32(when.Nanosecond())
	}
	if chunkDigest != "" {
		sum, ok := strings.CutPrefix(chunkDigest, "sha256:")
		b, herr := hex.DecodeString(sum)
		if !ok || herr != nil || copy(e.chunkDigest[:], b) != 32 || len(b) != 32 {
			err = errors.Join(err, errors.New("digest"))
		}
		e.hasDigest = true
	}
	var xattrs map[string]*string // not []byte, which an array of numbers would do for too
	get("xattrs", &xattrs)
	if len(xattrs) > maxXattrs {
		err = errors.Join(err, errors.New("too many"))
	}
	for k, v := range xattrs {
		if e.xattrs == nil {
			e.xattrs = map[string][]byte{}
		}
		if len(k) > maxXattrName {
			err = errors.Join(err, errors.New("too long"))
		}
		var value []byte
		if v != nil {
			var berr error
			value, berr = base64.StdEncoding.DecodeString(*v)
			err = errors.Join(err, berr)
		}
		if value == nil {
			value = []byte{}
		}
		e.xattrs[k] = value
	}
	return e, err
}

// FuzzDecode holds our JSON reader against encoding/json: the same entries, or
// both refuse. It is stricter on purpose in few points, listed at the end.
func FuzzDecode(f *testing.F) {
	f.Add(bigTOC(3))
	for _, s := range decodeSamples() {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, js []byte) {
		got, err := decodeAll(js, whole)
		slow, slowErr := decodeAll(js, iotest.OneByteReader)
		if (err == nil) != (slowErr == nil) || err == nil && !reflect.DeepEqual(got, slow) {
			t.Fatalf("the window matters: %v, %v", err, slowErr)
		}
		want, wantErr := referenceAll(js)
		switch {
		case err == nil && wantErr != nil:
			t.Fatalf("accepted, encoding/json says %v", wantErr)
		case err == nil && !equalEntries(got, want):
			t.Fatalf("got %+v, encoding/json %+v", got, want)
		case err != nil && wantErr == nil && !stricter(err):
			t.Fatalf("refused with %v, encoding/json accepts", err)
		}
	})
}

// equalEntries compares without telling nil from empty.
func equalEntries(a, b []rawEntry) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		if !bytes.Equal(x.name, y.name) || !bytes.Equal(x.link, y.link) || !bytes.Equal(x.fileDigest, y.fileDigest) || !sameXattrs(x.xattrs, y.xattrs) {
			return false
		}
		x.name, x.link, x.xattrs, x.fileDigest, y.name, y.link, y.xattrs, y.fileDigest = nil, nil, nil, nil, nil, nil, nil, nil
		if !reflect.DeepEqual(x, y) {
			return false
		}
	}
	return true
}

// stricter says whether we refuse something that encoding/json accepts, and mean to.
func stricter(err error) bool {
	return errors.Is(err, ErrLimit) || errors.Is(err, errNotUTF8) ||
		strings.Contains(err.Error(), "two lists") || strings.Contains(err.Error(), "number too long")
}

// decodeSamples are texts that once were, or could be, read in two ways.
func decodeSamples() []string {
	entry := func(fields string) string { return `{"version":1,"entries":[{` + fields + `}]}` }
	return []string{
		``, `{}`, `null`, `[]`, `{"version":1}`, `{"version":1,"entries":null}`, `{"version":1,"entries":[null]}`,
		`{"version":1,"entries":[]} `, `{"version":1,"entries":[]}x`, `{"version":1,"entries":[]}` + "\x00", `{"version":1,"entries":[],}`,
		`{"version":2,"entries":[]}`, `{"entries":[],"version":1,"x":{"y":[1,-2.5e+3,true,false,null,"\u00e9"]}}`,
		entry(`"name":"a\/b\"\\\b\f\n\r\t\u0041"`), entry(`"name":"\ud83d\ude00\ud83dx\ude00"`), entry(`"name":"\ud83d\u0041"`),
		entry(`"name":"\ud83d\ud83d\ude00"`), entry(`"name":"\u12"`), entry(`"name":"\x"`), entry("\"name\":\"a\x01\""), entry("\"name\":\"a\xff\""),
		entry(`"name":null,"size":null,"xattrs":null,"type":null`), entry(`"size":1.0`), entry(`"size":1e3`), entry(`"size":-0`), entry(`"size":01`),
		entry(`"size":9223372036854775807,"offset":-9223372036854775808`), entry(`"size":9223372036854775808`), entry(`"size":"1"`),
		entry(`"size":1,"size":2,"name":"a","name":"b"`), entry(`"Name":"a","NAME":"b"`), entry(`"name" : "a" , "type" : "reg"`),
		entry(`"xattrs":{"user.a":"` + b64("v") + `","user.b":"","user.c":null}`), entry(`"xattrs":{"user.a":"!"}`), entry(`"xattrs":{"user.a":[1,2]}`),
		entry(`"xattrs":{"user.a":"AA\nAA"}`), entry(`"modtime":"2023-02-29T00:00:00Z"`), entry(`"modtime":"2024-02-29T23:59:59.123456789+05:30"`),
		entry(`"modtime":"0001-01-01T00:00:00Z"`), entry(`"modtime":"1969-12-31T23:59:59.5Z"`), entry(`"modtime":"2024-01-01T00:00:00,5Z"`), entry(`"modtime":"x"`),
		entry(`"chunkDigest":"sha256:` + strings.Repeat("aB", 32) + `"`), entry(`"chunkDigest":"sha512:00"`),
		entry(`"chunkType":"zeros"`), entry(`"chunkType":""`), entry(`"chunkType":"other"`), entry(`"chunkType":1`), entry(`"chunkType":null`),
		entry(`"digest":"sha256:x"`), entry(`"digest":1,"name":"a"`), entry(`"digest":"a","digest":null`),
		`{"version":1,"entries":[{"name":"a"}],"entries":[{}]}`, strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100),
	}
}

func TestDecodeSamples(t *testing.T) {
	for _, js := range decodeSamples() {
		got, err := decodeAll([]byte(js), whole)
		slow, slowErr := decodeAll([]byte(js), iotest.OneByteReader)
		want, wantErr := referenceAll([]byte(js))
		if (err == nil) != (slowErr == nil) || !reflect.DeepEqual(got, slow) {
			t.Errorf("%s: whole %v, bytewise %v", js, err, slowErr)
		}
		if err == nil && (wantErr != nil || !equalEntries(got, want)) || err != nil && wantErr == nil && !stricter(err) {
			t.Errorf("%s:\n got %+v, %v\nwant %+v, %v", js, got, err, want, wantErr)
		}
	}
}

// The window must hold a string that is longer than it, wherever it begins.
func TestDecodeLongStrings(t *testing.T) {
	for _, n := range []int{windowSize - 40, windowSize - 20, windowSize, 3*windowSize + 7} {
		for pad := range 25 {
			js := fmt.Sprintf(`{"version":1,%s"entries":[{"linkName":"%s\n%s"}]}`, strings.Repeat(" ", pad), strings.Repeat("x", n), strings.Repeat("y", n))
			got, err := decodeAll([]byte(js), whole)
			if err != nil || len(got) != 1 || len(got[0].link) != 2*n+1 {
				t.Fatalf("%d, %d: %v", n, pad, err)
			}
		}
	}
	huge := `{"version":1,"entries":[{"linkName":"` + strings.Repeat("x", 5*maxString) + `"}]}`
	if _, err := decodeAll([]byte(huge), whole); !errors.Is(err, ErrLimit) {
		t.Fatalf("a string of %d bytes: %v", 5*maxString, err)
	}
}

func TestParseTimeAgainstStandardLibrary(t *testing.T) {
	check := func(s string) {
		t.Helper()
		sec, nsec, ok := parseTime([]byte(s))
		want, err := time.Parse(time.RFC3339, s)
		if ok != (err == nil) || ok && (sec != want.Unix() || nsec != uint32(want.Nanosecond())) {
			t.Fatalf("%s: got %d.%09d %v, want %v %v", s, sec, nsec, ok, want, err)
		}
	}
	for day := -800000; day < 2000000; day += 97 { // years -220 to 7400
		when := time.Unix(int64(day)*86400+int64(day%86400+86400)%86400, int64(day&0xfffff)).UTC()
		if y := when.Year(); y < 0 || y > 9999 {
			continue
		}
		check(when.Format(time.RFC3339))
		check(when.Format(time.RFC3339Nano))
	}
	for _, s := range []string{"2024-02-30T00:00:00Z", "2024-01-01T24:00:00Z", "2024-01-01T00:00:60Z", "2024-01-01T00:00:00", "2024-01-01T00:00:00.Z",
		"2024-01-01T00:00:00.1234567891Z", "2024-13-01T00:00:00Z", "2024-00-01T00:00:00Z", "2024-01-00T00:00:00Z", "2024-01-01T00:00:00-08:00", "2024-01-01t00:00:00z"} {
		check(s)
	}
}

func BenchmarkDecode(b *testing.B) {
	js := realTOC(b)
	run := func(name string, f func() int) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(js)))
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n = f()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/entry")
		})
	}
	run("ours", func() int {
		n := 0
		if err := decode(newScanner(bytes.NewReader(js)), func(*rawEntry) error { n++; return nil }); err != nil {
			b.Fatal(err)
		}
		return n
	})
	run("index", func() int {
		x, err := parseJSON(bytes.NewReader(js), newBuilder(int64(len(js)), 1<<40))
		if err != nil {
			b.Fatal(err)
		}
		return len(x.Entries)
	})
	run("encodingjson", func() int {
		var toc estargz.JTOC
		if err := json.NewDecoder(bytes.NewReader(js)).Decode(&toc); err != nil {
			b.Fatal(err)
		}
		return len(toc.Entries)
	})
}

func BenchmarkParse(b *testing.B) {
	raw, d := packTOC(b, realTOC(b))
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(raw, d, 1<<40); err != nil {
			b.Fatal(err)
		}
	}
}
