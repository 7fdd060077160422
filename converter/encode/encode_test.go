package encode

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/layerindex"
	nodetoc "github.com/apparate/apparate/snapshotter/toc"
)

// encoded runs Encode and checks what holds for every layer: the sizes and
// digests it reports, and that the blob is a plain tar.gz with them.
func encoded(t testing.TB, src []byte, o Options) ([]byte, Layer) {
	t.Helper()
	var out bytes.Buffer
	l, err := Encode(context.Background(), &out, bytes.NewReader(src), o)
	if err != nil {
		t.Fatalf("Encode: %v", err)
	}
	blob := out.Bytes()
	checkLayer(t, blob, l)
	return blob, l
}

func checkLayer(t testing.TB, blob []byte, l Layer) {
	t.Helper()
	if l.TOCChecksum != "" {
		checkZstdLayer(t, blob, l)
		return
	}
	plain := gunzip(t, blob)
	toc := gunzip(t, blob[l.TOCOffset:l.TOCOffset+l.TOCSize])[blockSize:]
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"Size", l.Size, int64(len(blob))},
		{"Digest", l.Digest, digest.FromBytes(blob)},
		{"UncompressedSize", l.UncompressedSize, int64(len(plain))},
		{"DiffID", l.DiffID, digest.FromBytes(plain)},
		{"TOCOffset+TOCSize+IndexSize", l.TOCOffset + l.TOCSize + l.IndexSize, l.Size - FooterSize},
		{"TOCDigest", l.TOCDigest, digest.FromBytes(bytes.TrimRight(toc, "\x00"))},
	} {
		if c.got != c.want {
			t.Errorf("%s = %v, want %v", c.what, c.got, c.want)
		}
	}
	if off, err := ParseFooter(blob[len(blob)-FooterSize:]); err != nil || off != l.TOCOffset {
		t.Errorf("footer says %d, %v; want %d", off, err, l.TOCOffset)
	}
	checkIndex(t, blob, l, l.TOCOffset+l.TOCSize)
}

// checkIndex checks the index, which is to be at offset.
func checkIndex(t testing.TB, blob []byte, l Layer, offset int64) {
	t.Helper()
	if l.IndexDigest == "" {
		if l.IndexSize != 0 || l.IndexOffset != 0 {
			t.Errorf("an index at %d+%d without digest", l.IndexOffset, l.IndexSize)
		}
		return
	}
	if l.IndexOffset != offset {
		t.Errorf("the index is at %d, the TOC ends at %d", l.IndexOffset, offset)
	}
	payload, err := layerindex.Payload(bytes.Clone(blob[l.IndexOffset : l.IndexOffset+l.IndexSize]))
	if err != nil || digest.FromBytes(payload) != l.IndexDigest {
		t.Errorf("index: %v, digest %s, want %s", err, digest.FromBytes(payload), l.IndexDigest)
	}
	// Both ways to the node's index are one.
	fromTOC, err := nodetoc.Parse(blob[l.TOCOffset:l.TOCOffset+l.TOCSize], l.TOCDigest, l.TOCOffset)
	if err != nil {
		return // nodes refuse the layer
	}
	fromIndex, err := nodetoc.ParseIndex(payload, l.IndexDigest)
	if err != nil {
		t.Fatalf("index: %v", err)
	}
	if !reflect.DeepEqual(fromTOC, fromIndex) {
		t.Errorf("the index says other things than the TOC:\n%+v\n%+v", fromIndex, fromTOC)
	}
}

func gunzip(t testing.TB, b []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("gunzip: %v", err)
	}
	plain, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("gunzip: %v", err)
	}
	return plain
}

// seen is what archive/tar says of one path.
type seen struct {
	h    *tar.Header
	body []byte
}

func readTar(t testing.TB, b []byte) []seen {
	t.Helper()
	var all []seen
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("read tar: %v", err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("read %q: %v", h.Name, err)
		}
		all = append(all, seen{h, body})
	}
}

// checkEstargz opens the blob with stargz's own library and compares every
// entry and every byte with the tar it came from.
func checkEstargz(t testing.TB, blob []byte, l Layer, src []byte) {
	t.Helper()
	sr := io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob)))
	r, err := estargz.Open(sr, estargz.WithDecompressors(new(zstdchunked.Decompressor)))
	if err != nil {
		t.Fatalf("estargz.Open: %v", err)
	}
	if r.TOCDigest() != l.TOCDigest {
		t.Errorf("stargz reads TOC digest %s, want %s", r.TOCDigest(), l.TOCDigest)
	}
	last := map[string]seen{}
	for _, s := range readTar(t, src) {
		if s.h.Typeflag != tar.TypeXGlobalHeader && !Reserved(s.h.Name) {
			last[CleanName(s.h.Name)] = s
		}
	}
	for name, s := range last {
		target := name
		for s.h.Typeflag == tar.TypeLink {
			target = CleanName(s.h.Linkname)
			s = last[target]
		}
		e, ok := r.Lookup(name)
		if !ok {
			t.Errorf("stargz does not find %q", name)
			continue
		}
		checkEntry(t, name, e, s.h)
		if e.Name != target {
			t.Errorf("%q leads to %q, want %q", name, e.Name, target)
		}
		if s.h.Typeflag == tar.TypeReg && name == target {
			checkContent(t, r, name, s.body)
		}
	}
}

func checkEntry(t testing.TB, name string, e *estargz.TOCEntry, h *tar.Header) {
	t.Helper()
	if got, want := e.Stat().Mode(), (&tar.Header{Typeflag: h.Typeflag, Mode: h.Mode & 0o7777}).FileInfo().Mode(); got != want {
		t.Errorf("%q: mode %v, want %v", name, got, want)
	}
	// stargz gives an entry without a name the last one of the same number, so
	// names are compared only where there is one.
	if e.UID != h.Uid || e.GID != h.Gid || h.Uname != "" && e.Uname != h.Uname || h.Gname != "" && e.Gname != h.Gname {
		t.Errorf("%q: owner %d:%d %s:%s, want %d:%d %s:%s", name, e.UID, e.GID, e.Uname, e.Gname, h.Uid, h.Gid, h.Uname, h.Gname)
	}
	if !e.ModTime().Equal(h.ModTime) {
		t.Errorf("%q: mtime %v, want %v", name, e.ModTime(), h.ModTime)
	}
	if e.Size != h.Size {
		t.Errorf("%q: size %d, want %d", name, e.Size, h.Size)
	}
	if h.Typeflag == tar.TypeSymlink && e.LinkName != h.Linkname {
		t.Errorf("%q: link to %q, want %q", name, e.LinkName, h.Linkname)
	}
	if dev := h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock; dev && (int64(e.DevMajor) != h.Devmajor || int64(e.DevMinor) != h.Devminor) {
		t.Errorf("%q: device %d:%d, want %d:%d", name, e.DevMajor, e.DevMinor, h.Devmajor, h.Devminor)
	}
	xattrs := map[string]string{}
	for k, v := range e.Xattrs {
		xattrs[k] = string(v)
	}
	want := map[string]string{}
	for k, v := range h.PAXRecords {
		if n, ok := strings.CutPrefix(k, xattrPrefix); ok {
			want[n] = v
		}
	}
	if !maps.Equal(xattrs, want) {
		t.Errorf("%q: xattrs %q, want %q", name, xattrs, want)
	}
}

// checkContent reads a file as stargz does: whole, and chunk by chunk.
func checkContent(t testing.TB, r *estargz.Reader, name string, body []byte) {
	t.Helper()
	f, err := r.OpenFile(name)
	if err != nil {
		t.Errorf("%q: %v", name, err)
		return
	}
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, body) {
		t.Errorf("%q: %d bytes differ from %d, %v", name, len(got), len(body), err)
	}
	for off := int64(0); off < int64(len(body)); {
		c, ok := r.ChunkEntryForOffset(name, off)
		if !ok || c.ChunkOffset != off {
			t.Errorf("%q: no chunk at %d", name, off)
			return
		}
		p := got
		if c.ChunkSize < int64(len(body)) {
			p = make([]byte, c.ChunkSize)
			if _, err := f.ReadAt(p, off); err != nil {
				t.Errorf("%q: chunk at %d: %v", name, off, err)
			}
		}
		if d := digest.FromBytes(p).String(); d != c.ChunkDigest {
			t.Errorf("%q: chunk at %d has digest %s, want %s", name, off, d, c.ChunkDigest)
		}
		off += c.ChunkSize
	}
}

func TestEverythingIsReadByStargz(t *testing.T) {
	src := makeTar(t, everything()...)
	for name, o := range map[string]Options{
		"default": {}, "no groups": {GroupSize: -1}, "tiny chunks": {ChunkSize: 9000, GroupSize: 300},
		"groups above chunks": {ChunkSize: 20000, GroupSize: 64 << 10}, "fast": {Level: 1, Workers: 7},
		"zstd": {Format: ZstdChunked}, "zstd tiny": {Format: ZstdChunked, ChunkSize: 9000, GroupSize: 300}, "zstd fast": {Format: ZstdChunked, Level: 1},
	} {
		t.Run(name, func(t *testing.T) {
			blob, l := encoded(t, src, o)
			checkEstargz(t, blob, l, src)
		})
	}
}

// TestTarIsKept: the tar in the blob is the source's, up to its end, and then
// the TOC.
func TestTarIsKept(t *testing.T) {
	src := makeTar(t, everything()...)
	blob, l := encoded(t, src, Options{})
	end := bytes.TrimRight(src, "\x00")
	keep := len(end) + padding(int64(len(end)))
	plain := gunzip(t, blob[:l.TOCOffset])
	if !bytes.Equal(plain, src[:keep]) {
		t.Errorf("the tar changed: %d bytes, want %d", len(plain), keep)
	}
}

// TestVerifyTOC: stargz's VerifyTOC wants every offset to occur once, so it
// refuses shared members whoever made them (its snapshotter does not call it).
// Without groups it passes.
func TestVerifyTOC(t *testing.T) {
	src := makeTar(t, everything()...)
	blob, l := encoded(t, src, Options{GroupSize: -1})
	r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(blob), 0, l.Size))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.VerifyTOC(l.TOCDigest); err != nil {
		t.Errorf("VerifyTOC: %v", err)
	}
}

// TestGroupsAreRefusedByVerifyTOC shows that this is stargz's own limit: a layer
// that its writer made with shared members fails in the same way. When this test
// fails, TestVerifyTOC can take the default options.
func TestGroupsAreRefusedByVerifyTOC(t *testing.T) {
	src := makeTar(t, reg("a", []byte("a")), reg("b", []byte("b")))
	theirs, err := estargz.Build(io.NewSectionReader(bytes.NewReader(src), 0, int64(len(src))), estargz.WithMinChunkSize(128<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = theirs.Close() }()
	blob, err := io.ReadAll(theirs)
	if err != nil {
		t.Fatal(err)
	}
	r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(blob), 0, int64(len(blob))))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.VerifyTOC(r.TOCDigest()); err == nil {
		t.Error("VerifyTOC takes shared members now")
	}
}

func TestSameBytesEveryTime(t *testing.T) {
	src := makeTar(t, everything()...)
	for _, format := range []Format{EStargz, ZstdChunked} {
		want, wl := encoded(t, src, Options{Workers: 1, Format: format})
		for _, workers := range []int{2, 5, 16} {
			var out bytes.Buffer
			// A reader that gives odd pieces must not matter either.
			l, err := Encode(context.Background(), &out, &dribble{b: src}, Options{Workers: workers, Format: format})
			if err != nil {
				t.Fatal(err)
			}
			if l != wl || !bytes.Equal(out.Bytes(), want) {
				t.Errorf("%s: %d workers give other bytes", format, workers)
			}
		}
	}
}

// dribble reads in pieces of changing length.
type dribble struct {
	b []byte
	n int
}

func (d *dribble) Read(p []byte) (int, error) {
	if len(d.b) == 0 {
		return 0, io.EOF
	}
	d.n = (d.n*7 + 13) % 4099
	n := copy(p[:min(len(p), d.n+1)], d.b)
	d.b = d.b[n:]
	return n, nil
}

func TestReEncodeDropsReserved(t *testing.T) {
	src := makeTar(t, everything()...)
	blob, l := encoded(t, src, Options{})
	again := gunzip(t, blob)
	landmarks := makeTar(t, reg("a", []byte("a")), reg(PrefetchLandmark, []byte{0xf}), reg("b", []byte("b")), reg("./"+NoPrefetchLandmark, []byte{0xf}))
	blob2, l2 := encoded(t, again, Options{})
	if l2.TOCDigest != l.TOCDigest || !bytes.Equal(blob, blob2) {
		t.Error("encoding an encoded layer gives other bytes")
	}
	blob3, l3 := encoded(t, landmarks, Options{})
	checkEstargz(t, blob3, l3, landmarks)
	var names []string
	for _, s := range readTar(t, gunzip(t, blob3)) {
		names = append(names, s.h.Name)
	}
	if got := strings.Join(names, " "); got != "a b "+TOCName {
		t.Errorf("entries %q", got)
	}
}

func TestOddEnds(t *testing.T) {
	whole := makeTar(t, reg("a", []byte("0123456789")))
	for name, src := range map[string][]byte{
		"no bytes at all":    nil,
		"only the end":       make([]byte, 1024),
		"no end":             whole[:1024],
		"no padding":         whole[:512+10],
		"one zero block":     whole[:1536],
		"garbage at the end": append(bytes.Clone(whole), noise(9, 5000)...),
	} {
		t.Run(name, func(t *testing.T) {
			blob, l := encoded(t, src, Options{})
			checkEstargz(t, blob, l, src)
		})
	}
}

func TestUnsupported(t *testing.T) {
	sparse := reg("sparse", nil)
	sparse.Format = tar.FormatGNU
	cont := ent{tar.Header{Typeflag: tar.TypeCont, Name: "cont"}, nil}
	year := reg("year", nil)
	year.ModTime, year.Format = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC), tar.FormatGNU
	up := reg("a/../../b", nil)
	nobody := reg("nobody", nil)
	nobody.Uid, nobody.Format = 1<<32-1, tar.FormatGNU
	device := ent{tar.Header{Typeflag: tar.TypeChar, Name: "device", Devmajor: 5000, Format: tar.FormatGNU}, nil}
	for name, c := range map[string]struct {
		src  []byte
		want string
	}{
		"not UTF-8":       {makeTar(t, ent{tar.Header{Typeflag: tar.TypeReg, Name: "a\xff", Format: tar.FormatGNU}, nil}), "not UTF-8"},
		"link target":     {makeTar(t, ent{tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "\xff", Format: tar.FormatGNU}, nil}), "not UTF-8"},
		"GNU sparse":      {retype(makeTar(t, sparse), tar.TypeGNUSparse), "sparse"},
		"continuous":      {makeTar(t, cont), "tar type"},
		"far year":        {makeTar(t, year), "year 12000"},
		"up":              {makeTar(t, up), ".."},
		"no owner":        {makeTar(t, nobody), "owner"},
		"no device":       {makeTar(t, device), "device number"},
		"file as root":    {makeTar(t, reg("./.", nil)), "root"},
		"dangling":        {makeTar(t, link("a", "b")), "not in this layer"},
		"link to dir":     {makeTar(t, dir("d"), link("a", "d")), "directory"},
		"link circle":     {makeTar(t, link("a", "b"), link("b", "a")), "itself"},
		"link to self":    {makeTar(t, link("a", "a")), "itself"},
		"large and small": {makeTar(t, reg("a", noise(1, 300<<10)), reg("a", []byte("x"))), "occurs twice"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Encode(context.Background(), io.Discard, bytes.NewReader(c.src), Options{})
			var u *UnsupportedError
			if !errors.As(err, &u) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an UnsupportedError with %q", err, c.want)
			}
		})
	}
}

// retype changes the type of the first header, and its checksum.
func retype(b []byte, flag byte) []byte {
	b[156] = flag
	var sum int
	for i, c := range b[:blockSize] {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int(c)
	}
	for i := range 6 {
		b[148+5-i] = '0' + byte(sum>>(3*i)&7)
	}
	b[154], b[155] = 0, ' '
	return b
}

func TestCorrupt(t *testing.T) {
	src := makeTar(t, reg("a", noise(1, 10000)), reg("b", noise(2, 10000)))
	broken := bytes.Clone(src)
	broken[11000] ^= 0x40 // in the second header
	for name, b := range map[string][]byte{"cut in content": src[:5000], "cut in a header": src[:10900], "header": broken} {
		t.Run(name, func(t *testing.T) {
			_, err := Encode(context.Background(), io.Discard, bytes.NewReader(b), Options{})
			var c *CorruptError
			if !errors.As(err, &c) {
				t.Errorf("got %v, want a CorruptError", err)
			}
		})
	}
}

func TestReaderAndWriterErrors(t *testing.T) {
	src := makeTar(t, everything()...)
	errBroken := errors.New("broken")
	for _, n := range []int{0, 100, 5000, 500 << 10} {
		_, err := Encode(context.Background(), io.Discard, io.MultiReader(bytes.NewReader(src[:n]), failing{errBroken}), Options{})
		if !errors.Is(err, errBroken) {
			t.Errorf("reader fails after %d bytes: %v", n, err)
		}
		_, err = Encode(context.Background(), &limited{n: n, err: errBroken}, bytes.NewReader(src), Options{})
		if !errors.Is(err, errBroken) {
			t.Errorf("writer fails after %d bytes: %v", n, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Encode(ctx, io.Discard, bytes.NewReader(src), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type limited struct {
	n   int
	err error
}

func (l *limited) Write(p []byte) (int, error) {
	if l.n -= len(p); l.n < 0 {
		return 0, l.err
	}
	return len(p), nil
}

func TestOptionsAreChecked(t *testing.T) {
	for _, o := range []Options{{ChunkSize: -1}, {ChunkSize: 1 << 40}, {GroupSize: 1 << 40}, {Level: 10}, {Level: -2}, {Workers: -1}, {Format: "zip"}} {
		if _, err := Encode(context.Background(), io.Discard, bytes.NewReader(nil), o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
