package check

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"

	"github.com/apparate/apparate/api/image"
	"github.com/apparate/apparate/api/layerindex"
	"github.com/apparate/apparate/converter/encode"
	"github.com/apparate/apparate/converter/fault"
)

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// store is a registry in this process.
type store struct {
	t    *testing.T
	host string
}

func newStore(t *testing.T) *store {
	t.Helper()
	srv := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	return &store{t, strings.TrimPrefix(srv.URL, "http://")}
}

func (s *store) do(method, path string, body []byte) []byte {
	s.t.Helper()
	req, err := http.NewRequest(method, "http://"+s.host+path, bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Content-Type", manifestType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode > 299 {
		s.t.Fatalf("%s %s: %d %s, %v", method, path, resp.StatusCode, b, err)
	}
	return b
}

func (s *store) blob(b []byte) map[string]any {
	s.t.Helper()
	d := digest.FromBytes(b).String()
	s.do("POST", "/v2/app/blobs/uploads/?digest="+d, b)
	return map[string]any{"digest": d, "size": len(b)}
}

func (s *store) json(v any) []byte {
	s.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// push pushes an image with these layers and returns its digest.
func (s *store) push(tag string, annotations map[string]string, conf map[string]any, layers ...map[string]any) string {
	s.t.Helper()
	c := s.blob(s.json(conf))
	c["mediaType"] = "application/vnd.oci.image.config.v1+json"
	for _, l := range layers {
		if l["mediaType"] == nil {
			l["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip"
		}
	}
	m := s.json(map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": c, "layers": layers, "annotations": annotations})
	s.do("PUT", "/v2/app/manifests/"+tag, m)
	return digest.FromBytes(m).String()
}

func configOf(diffID string) map[string]any {
	return map[string]any{"os": "linux", "architecture": "amd64", "config": map[string]any{"Env": []string{"A=b"}},
		"history": []any{map[string]any{"created_by": "x"}}, "rootfs": map[string]any{"type": "layers", "diff_ids": []string{diffID}}}
}

type ent struct {
	h    tar.Header
	body string
}

// entries is a small layer; change may edit it.
func entries(change func([]*ent) []*ent) []*ent {
	stamp := time.Unix(1600000000, 5000)
	all := []*ent{
		{h: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}},
		{h: tar.Header{Typeflag: tar.TypeReg, Name: "file", Mode: 0o4755, Uid: 1, Gid: 2, Uname: "u", Gname: "g", PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}, body: strings.Repeat("content ", 200)},
		{h: tar.Header{Typeflag: tar.TypeReg, Name: "big", Mode: 0o644}, body: strings.Repeat("0123456789abcdef", 40000)},
		{h: tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "file"}},
		{h: tar.Header{Typeflag: tar.TypeSymlink, Name: "sym", Linkname: "file"}},
		{h: tar.Header{Typeflag: tar.TypeChar, Name: "dev", Devmajor: 1, Devminor: 3}},
		{h: tar.Header{Typeflag: tar.TypeReg, Name: "empty"}},
		{h: tar.Header{Typeflag: tar.TypeReg, Name: "last", Mode: 0o600}, body: "last"},
	}
	for _, e := range all {
		e.h.ModTime, e.h.Format = stamp, tar.FormatPAX
	}
	if change != nil {
		all = change(all)
	}
	return all
}

func makeTar(t *testing.T, all []*ent) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range all {
		e.h.Size = int64(len(e.body))
		if err := w.WriteHeader(&e.h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func gunzip(t *testing.T, b []byte) []byte {
	t.Helper()
	r, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// forged is an accelerated image that a test changes before it is pushed.
type forged struct {
	t    *testing.T
	blob []byte
	l    encode.Layer
	conf map[string]any
	ann  map[string]string // of the layer
	mark map[string]string // of the manifest
}

// describe makes annotations and diffID say what is true of the blob.
func (f *forged) describe() {
	f.ann[image.AnnotationTOCDigest] = f.l.TOCDigest.String()
	f.ann[image.AnnotationTOCOffset] = text(f.l.TOCOffset)
	f.ann[image.AnnotationTOCSize] = text(f.l.TOCSize)
	if f.l.TOCChecksum != "" {
		f.ann[image.AnnotationStargzZstdChecksum] = f.l.TOCChecksum.String()
		f.ann[image.AnnotationStargzZstdPosition] = fmt.Sprintf("%d:%d:%d:1", f.l.TOCOffset, f.l.TOCSize, f.l.TOCJSONSize)
	}
	f.ann[image.AnnotationIndexDigest] = f.l.IndexDigest.String()
	f.ann[image.AnnotationIndexOffset] = text(f.l.IndexOffset)
	f.ann[image.AnnotationIndexSize] = text(f.l.IndexSize)
	f.ann[image.AnnotationBlobSize] = text(int64(len(f.blob)))
	f.ann[image.AnnotationUncompressedSize] = text(f.l.UncompressedSize)
	f.conf["rootfs"].(map[string]any)["diff_ids"] = []string{f.l.DiffID.String()}
}

func text(n int64) string { b, _ := json.Marshal(n); return string(b) }

// toc replaces the TOC's text, and makes everything that names the TOC agree.
func (f *forged) toc(old, replacement string) {
	f.t.Helper()
	r := tar.NewReader(bytes.NewReader(gunzip(f.t, f.blob[f.l.TOCOffset:f.l.TOCOffset+f.l.TOCSize])))
	if _, err := r.Next(); err != nil {
		f.t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		f.t.Fatal(err)
	}
	if bytes.Count(b, []byte(old)) == 0 {
		f.t.Fatalf("the TOC has no %q: %s", old, b)
	}
	b = bytes.Replace(b, []byte(old), []byte(replacement), 1)
	var entry bytes.Buffer
	w := tar.NewWriter(&entry)
	if err := errors.Join(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: encode.TOCName, Size: int64(len(b))}), write(w, b), w.Close()); err != nil {
		f.t.Fatal(err)
	}
	member := gz(f.t, entry.Bytes())
	index := bytes.Clone(f.blob[f.l.IndexOffset : f.l.IndexOffset+f.l.IndexSize])
	f.l.TOCDigest, f.l.TOCSize = digest.FromBytes(b), int64(len(member))
	f.l.IndexOffset = f.l.TOCOffset + f.l.TOCSize
	f.blob = slices.Concat(f.blob[:f.l.TOCOffset], member, index, encode.Footer(f.l.TOCOffset))
	plain := gunzip(f.t, f.blob)
	f.l.UncompressedSize, f.l.DiffID = int64(len(plain)), digest.FromBytes(plain)
	f.describe()
}

// index has the index written anew with entries that edit changed.
func (f *forged) index(edit func(*layerindex.Entry, []layerindex.Chunk)) {
	f.t.Helper()
	payload, err := layerindex.Payload(bytes.Clone(f.blob[f.l.IndexOffset : f.l.IndexOffset+f.l.IndexSize]))
	if err != nil {
		f.t.Fatal(err)
	}
	r, err := layerindex.NewReader(payload)
	if err != nil {
		f.t.Fatal(err)
	}
	var blocks []byte
	w, err := layerindex.NewWriter(encode.DefaultChunkSize, func(b []byte) error { blocks = append(blocks, b...); return nil })
	if err != nil {
		f.t.Fatal(err)
	}
	for {
		var e layerindex.Entry
		chunks, err := r.Next(&e)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			f.t.Fatal(err)
		}
		if edit(&e, chunks); e.Type == 0 {
			continue
		}
		if err := w.Add(&e, chunks); err != nil {
			f.t.Fatal(err)
		}
	}
	header, err := w.Close(f.l.TOCOffset)
	if err != nil {
		f.t.Fatal(err)
	}
	payload = append(header, blocks...)
	members := layerindex.AppendMembers(nil, payload)
	f.l.IndexDigest, f.l.IndexSize = digest.FromBytes(payload), int64(len(members))
	f.blob = slices.Concat(f.blob[:f.l.IndexOffset], members, encode.Footer(f.l.TOCOffset))
	f.describe()
}

func write(w io.Writer, b []byte) error { _, err := w.Write(b); return err }

// checkForged pushes a source, and an accelerated image of it that change forged.
func checkForged(t *testing.T, edit func([]*ent) []*ent, change func(*forged)) Report {
	t.Helper()
	return checkForgedAs(t, encode.EStargz, edit, change)
}

// checkForgedAs is checkForged for a format.
func checkForgedAs(t *testing.T, format encode.Format, edit func([]*ent) []*ent, change func(*forged)) Report {
	t.Helper()
	s := newStore(t)
	src := makeTar(t, entries(nil))
	layer := s.blob(gz(t, src))
	from := s.push("v1", map[string]string{"title": "t"}, configOf(digest.FromBytes(src).String()), layer)
	var out bytes.Buffer
	l, err := encode.Encode(context.Background(), &out, bytes.NewReader(makeTar(t, entries(edit))), encode.Options{Format: format})
	if err != nil {
		t.Fatal(err)
	}
	f := &forged{t: t, blob: out.Bytes(), l: l, conf: configOf(""),
		ann:  map[string]string{image.AnnotationLayerSource: layer["digest"].(string)},
		mark: map[string]string{"title": "t", image.AnnotationSourceDigest: from, image.AnnotationFormat: image.FormatOf(string(format))}}
	f.describe()
	if change != nil {
		change(f)
	}
	d := s.blob(f.blob)
	d["annotations"] = f.ann
	if format == encode.ZstdChunked {
		d["mediaType"] = "application/vnd.oci.image.layer.v1.tar+zstd"
	}
	s.push("fast", f.mark, f.conf, d)
	r, err := Check(context.Background(), Options{Image: s.host + "/app:fast", RetryWait: time.Millisecond, TempDir: t.TempDir()})
	if err != nil {
		t.Fatalf("Check: %v", err)
	}
	return r
}

func TestEqual(t *testing.T) {
	r := checkForged(t, nil, nil)
	for _, d := range r.Differences {
		t.Error(d)
	}
	if !r.Equal() || r.Entries != 8 || r.Layers != 1 || len(r.Platforms) != 1 || r.Platforms[0] != "linux/amd64" {
		t.Errorf("report %+v", r)
	}
}

// TestTarDiffers: whatever differs in the accelerated tar is named.
func TestTarDiffers(t *testing.T) {
	at := func(i int, f func(*ent)) func([]*ent) []*ent {
		return func(all []*ent) []*ent { f(all[i]); return all }
	}
	for name, c := range map[string]struct {
		edit         func([]*ent) []*ent
		entry, field string
	}{
		"mode":        {at(1, func(e *ent) { e.h.Mode = 0o755 }), "file", "tar: mode"},
		"root mode":   {at(0, func(e *ent) { e.h.Mode = 0o700 }), "./", "tar: mode"},
		"uid":         {at(1, func(e *ent) { e.h.Uid = 9 }), "file", "tar: uid"},
		"gid":         {at(1, func(e *ent) { e.h.Gid = 9 }), "file", "tar: gid"},
		"user":        {at(1, func(e *ent) { e.h.Uname = "v" }), "file", "tar: user name"},
		"nanoseconds": {at(7, func(e *ent) { e.h.ModTime = e.h.ModTime.Add(1) }), "last", "tar: mtime"},
		"xattr":       {at(1, func(e *ent) { e.h.PAXRecords["SCHILY.xattr.user.a"] = "c" }), "file", "tar: xattr user.a"},
		"more xattrs": {at(7, func(e *ent) { e.h.PAXRecords = map[string]string{"SCHILY.xattr.user.z": ""} }), "last", "tar: xattr user.z"},
		"hard link":   {at(3, func(e *ent) { e.h.Linkname = "big" }), "hard", "tar: link target"},
		"symlink":     {at(4, func(e *ent) { e.h.Linkname = "big" }), "sym", "tar: link target"},
		"device":      {at(5, func(e *ent) { e.h.Devminor = 5 }), "dev", "tar: device minor"},
		"type":        {at(6, func(e *ent) { e.h.Typeflag = tar.TypeFifo }), "empty", "tar: entry"},
		"size":        {at(7, func(e *ent) { e.body = "longer" }), "last", "tar: size"},
		"content":     {at(2, func(e *ent) { e.body = e.body[:500000] + "!" + e.body[500001:] }), "big", "tar: content"},
		"missing":     {func(a []*ent) []*ent { return append(a[:6], a[7:]...) }, "empty", "tar: entry"},
		"last gone":   {func(a []*ent) []*ent { return a[:7] }, "last", "tar: entry"},
		"one more":    {func(a []*ent) []*ent { return append(a, &ent{h: tar.Header{Typeflag: tar.TypeReg, Name: "new"}}) }, "new", "tar: entry"},
	} {
		t.Run(name, func(t *testing.T) { wantDifference(t, checkForged(t, c.edit, nil), c.entry, c.field) })
	}
}

func wantDifference(t *testing.T, r Report, entry, field string) {
	t.Helper()
	for _, d := range r.Differences {
		if d.Entry == entry && d.Field == field {
			if s := d.String(); strings.Contains(s, "\n") || entry != "" && !strings.Contains(s, entry) {
				t.Errorf("printed as %q", s)
			}
			return
		}
	}
	t.Errorf("no difference in %q of %q: %v", field, entry, r.Differences)
}

// TestTOCDiffers: the tar is right, and its TOC tells something else.
func TestTOCDiffers(t *testing.T) {
	for name, c := range map[string]struct {
		old, replacement, entry, field string
	}{
		"mode":          {`"mode":2541`, `"mode":493`, "file", "TOC: mode"},
		"uid":           {`"uid":1`, `"uid":3`, "file", "TOC: uid"},
		"user":          {`"userName":"u"`, `"userName":"v"`, "file", "TOC: user name"},
		"mtime":         {`"name":"last","type":"reg","size":4,"modtime":"2020-09-13T12:26:40.000005Z"`, `"name":"last","type":"reg","size":4,"modtime":"2020-09-13T12:26:40Z"`, "last", "TOC: mtime"},
		"xattr":         {`"user.a":"Yg=="`, `"user.a":"Yw=="`, "file", "TOC: xattr user.a"},
		"hard link":     {`"name":"hard","type":"hardlink","modtime":"2020-09-13T12:26:40.000005Z","linkName":"file"`, `"name":"hard","type":"hardlink","modtime":"2020-09-13T12:26:40.000005Z","linkName":"big"`, "hard", "TOC: link target"},
		"device":        {`"devMinor":3`, `"devMinor":4`, "dev", "TOC: device minor"},
		"size":          {`"name":"file","type":"reg","size":1600`, `"name":"file","type":"reg","size":1599`, "file", "TOC: size"},
		"name":          {`"name":"sym"`, `"name":"zym"`, "sym", "TOC: entry"},
		"type":          {`"name":"sym","type":"symlink"`, `"name":"sym","type":"hardlink"`, "sym", "TOC: entry"},
		"digest":        {`"digest":"sha256:`, `"digest":"sha256:0`, "file", "TOC: digest of the content"},
		"chunk digest":  {`"chunkDigest":"sha256:`, `"chunkDigest":"sha256:0`, "file", "TOC: digest of the chunk at 0"},
		"inner offset":  {`"innerOffset":`, `"innerOffset":1`, "last", "TOC: chunks"},
		"chunk offset":  {`"chunkOffset":262144`, `"chunkOffset":262143`, "big", "TOC: chunks"},
		"offset":        {`"offset":`, `"offset":1`, "file", "TOC: chunks"},
		"chunk missing": {`"type":"chunk"`, `"type":"fifo"`, "big", "TOC: chunks"},
		"one more":      {"\n]}", ",\n{\"name\":\"hidden\",\"type\":\"fifo\"}\n]}", "hidden", "TOC: entry"},
		"after the end": {"\n]}", "\n],\"more\":1}", "", "TOC"},
		"before":        {`"version":1`, `"version":2`, "", "TOC"},
	} {
		t.Run(name, func(t *testing.T) {
			wantDifference(t, checkForged(t, nil, func(f *forged) { f.toc(c.old, c.replacement) }), c.entry, c.field)
		})
	}
}

// TestIndexDiffers: tar and TOC are right, and the layer index tells something else.
func TestIndexDiffers(t *testing.T) {
	type edit = func(*layerindex.Entry, []layerindex.Chunk)
	of := func(name string, f edit) edit {
		return func(e *layerindex.Entry, c []layerindex.Chunk) {
			if e.Path == name {
				f(e, c)
			}
		}
	}
	for name, c := range map[string]struct {
		edit         edit
		entry, field string
	}{
		"mode":         {of("file", func(e *layerindex.Entry, _ []layerindex.Chunk) { e.Mode ^= 1 }), "file", "index: mode"},
		"uid":          {of("file", func(e *layerindex.Entry, _ []layerindex.Chunk) { e.UID++ }), "file", "index: uid"},
		"gid":          {of("file", func(e *layerindex.Entry, _ []layerindex.Chunk) { e.GID++ }), "file", "index: gid"},
		"mtime":        {of("last", func(e *layerindex.Entry, _ []layerindex.Chunk) { e.Sec++ }), "last", "index: mtime seconds"},
		"nanoseconds":  {of("last", func(e *layerindex.Entry, _ []layerindex.Chunk) { e.Nsec = 0 }), "last", "index: mtime nanoseconds"},
		"xattr":        {of("file", func(e *layerindex.Entry, _ []layerindex.Chunk) { e.Xattrs = nil }), "file", "index: xattr user.a"},
		"hard link":    {of("hard", func(e *layerindex.Entry, _ []layerindex.Chunk) { e.Link = "big" }), "hard", "index: link target"},
		"device":       {of("dev", func(e *layerindex.Entry, _ []layerindex.Chunk) { e.DevMinor++ }), "dev", "index: device minor"},
		"name":         {of("sym", func(e *layerindex.Entry, _ []layerindex.Chunk) { e.Path = "zym" }), "sym", "index: name"},
		"type":         {of("sym", func(e *layerindex.Entry, _ []layerindex.Chunk) { e.Type, e.Link = layerindex.Fifo, "" }), "sym", "index: type"},
		"chunk digest": {of("big", func(_ *layerindex.Entry, c []layerindex.Chunk) { c[0].Digest[0]++ }), "big", "index: chunk at 0"},
		"chunk place":  {of("big", func(_ *layerindex.Entry, c []layerindex.Chunk) { c[len(c)-1].Inner++ }), "big", "index: chunk at 524288"},
		"one less":     {of("last", func(e *layerindex.Entry, _ []layerindex.Chunk) { e.Type = 0 }), "last", "index: entry"},
		"one gone":     {of("sym", func(e *layerindex.Entry, _ []layerindex.Chunk) { e.Type = 0 }), "sym", "index: name"},
	} {
		t.Run(name, func(t *testing.T) {
			wantDifference(t, checkForged(t, nil, func(f *forged) { f.index(c.edit) }), c.entry, c.field)
		})
	}
}

func TestDescriptionDiffers(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*forged)
		field  string
	}{
		"TOC digest":   {func(f *forged) { f.ann[image.AnnotationTOCDigest] = "sha256:0" }, "annotation " + image.AnnotationTOCDigest},
		"TOC offset":   {func(f *forged) { f.ann[image.AnnotationTOCOffset] = "1" }, "annotation " + image.AnnotationTOCOffset},
		"TOC size":     {func(f *forged) { f.ann[image.AnnotationTOCSize] = "1" }, "annotation " + image.AnnotationTOCSize},
		"index digest": {func(f *forged) { f.ann[image.AnnotationIndexDigest] = "sha256:0" }, "annotation " + image.AnnotationIndexDigest},
		"index offset": {func(f *forged) { f.ann[image.AnnotationIndexOffset] = "1" }, "annotation " + image.AnnotationIndexOffset},
		"index size":   {func(f *forged) { delete(f.ann, image.AnnotationIndexSize) }, "annotation " + image.AnnotationIndexSize},
		"index hidden": {func(f *forged) {
			for _, k := range []string{image.AnnotationIndexDigest, image.AnnotationIndexOffset, image.AnnotationIndexSize} {
				delete(f.ann, k)
			}
		}, "annotation " + image.AnnotationTOCSize},
		"index damaged": {func(f *forged) { f.blob[f.l.IndexOffset+40]++ }, "annotation " + image.AnnotationIndexDigest},
		"blob size":     {func(f *forged) { delete(f.ann, image.AnnotationBlobSize) }, "annotation " + image.AnnotationBlobSize},
		"tar size":      {func(f *forged) { f.ann[image.AnnotationUncompressedSize] = "1" }, "annotation " + image.AnnotationUncompressedSize},
		"layer source":  {func(f *forged) { f.ann[image.AnnotationLayerSource] = "sha256:0" }, "annotation " + image.AnnotationLayerSource},
		"diff_id":       {func(f *forged) { f.conf["rootfs"].(map[string]any)["diff_ids"] = []string{"sha256:0"} }, "config: diff_id"},
		"config":        {func(f *forged) { f.conf["config"] = map[string]any{"Env": []string{"A=c"}} }, "config: config"},
		"history":       {func(f *forged) { delete(f.conf, "history") }, "config: history"},
		"annotation":    {func(f *forged) { delete(f.mark, "title") }, "manifest: annotation title"},
		"footer":        {func(f *forged) { f.blob[len(f.blob)-1] = 1 }, "layer: footer"},
		"footer offset": {func(f *forged) { copy(f.blob[len(f.blob)-51:], encode.Footer(f.l.TOCOffset-1)) }, "TOC"},
	} {
		t.Run(name, func(t *testing.T) {
			wantDifference(t, checkForged(t, nil, c.change), "", c.field)
		})
	}
}

func TestManyDifferencesAreCounted(t *testing.T) {
	r := checkForged(t, func(all []*ent) []*ent {
		for _, e := range all {
			e.h.Uid, e.h.Gid, e.h.Mode, e.h.ModTime = 77, 77, 0o123, time.Unix(5, 0)
		}
		return all
	}, nil)
	if len(r.Differences) != DefaultMaxDifferences || r.Total < len(r.Differences) {
		t.Errorf("%d listed, %d in all", len(r.Differences), r.Total)
	}
}

func TestWhatCannotBeChecked(t *testing.T) {
	s := newStore(t)
	src := makeTar(t, entries(nil))
	s.push("v1", nil, configOf(digest.FromBytes(src).String()), s.blob(gz(t, src)))
	s.push("orphan", map[string]string{image.AnnotationSourceDigest: "sha256:" + strings.Repeat("0", 64)}, configOf("x"), s.blob(gz(t, src)))
	for img, want := range map[string]fault.Kind{"v1": fault.NotAccelerated, "nothing": fault.NotFound, "orphan": fault.NotFound} {
		_, err := Check(context.Background(), Options{Image: s.host + "/app:" + img, RetryWait: time.Millisecond})
		if fault.KindOf(err) != want {
			t.Errorf("%s: %v, want %v", img, err, want)
		}
	}
}
