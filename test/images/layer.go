package images

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/apparate/apparate/test/debian"
	"github.com/apparate/apparate/test/tools"
)

// layerVersion is part of every cache key. Raise it when the code below makes
// other bytes of the same recipe.
const layerVersion = 2

// builder makes the layers of one image in a cache directory.
type builder struct {
	dir      string
	archive  *debian.Archive
	progress io.Writer

	mu       sync.Mutex
	closures map[string][]debian.Package // by the names asked for: a base is asked for by every layer
}

func (b *builder) closure(ctx context.Context, names []string) ([]debian.Package, error) {
	b.mu.Lock() // held while apt-get runs: another layer is about to ask for the same
	defer b.mu.Unlock()
	key := strings.Join(names, " ")
	if pkgs, ok := b.closures[key]; ok {
		return pkgs, nil
	}
	pkgs, err := b.archive.Closure(ctx, names...)
	if err == nil {
		b.closures[key] = pkgs
	}
	return pkgs, err
}

// layer returns the last of the given layers; those below it say which packages
// are there already.
func (b *builder) layer(ctx context.Context, stack []layerRecipe) (*layer, error) {
	r := stack[len(stack)-1]
	key := sha256.Sum256(fmt.Appendf(nil, "%d %s %+v", layerVersion, triplet(), stack))
	dir := filepath.Join(b.dir, fmt.Sprintf("%s-%x", r.name, key[:4]))
	if err := tools.Make(dir, func(tmp string) error { return b.fill(ctx, stack, tmp) }); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "layer.json"))
	if err != nil {
		return nil, err
	}
	l := &layer{blob: filepath.Join(dir, "blob"), mediaType: types.OCILayer}
	return l, json.Unmarshal(text, &l.about)
}

// fill assembles the top layer of the stack in dir: "blob" and "layer.json".
func (b *builder) fill(ctx context.Context, stack []layerRecipe, dir string) error {
	r := stack[len(stack)-1]
	pkgs, err := b.packages(ctx, stack)
	if err != nil {
		return err
	}
	tools.Say(b.progress, "images: layer %s, %d packages", r.name, len(pkgs))
	level := gzip.DefaultCompression
	if r.made != nil {
		level = r.made.level()
	}
	w, err := newLayerWriter(filepath.Join(dir, "blob"), level)
	if err != nil {
		return err
	}
	for _, p := range pkgs {
		if err := p.Files(ctx, w.add); err != nil {
			return errors.Join(err, w.out.Close())
		}
		w.about.Packages = append(w.about.Packages, p.Name+" "+p.Version)
	}
	for _, f := range r.files {
		if err := w.addFile(f); err != nil {
			return errors.Join(err, w.out.Close())
		}
	}
	if r.made != nil {
		if err := r.made.write(ctx, b, w); err != nil {
			return errors.Join(err, w.out.Close())
		}
	}
	about, err := w.finish()
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(about, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "layer.json"), text, 0o644)
}

// packages returns what the top layer adds to the closure of those below.
func (b *builder) packages(ctx context.Context, stack []layerRecipe) ([]debian.Package, error) {
	top := len(stack) - 1
	switch {
	case len(stack[top].packages) == 0:
		return nil, nil
	case stack[top].alone:
		return b.archive.Fetch(ctx, stack[top].packages...)
	}
	var below []string
	for _, l := range stack[:top] {
		below = append(below, l.packages...)
	}
	there := map[string]bool{}
	if len(below) > 0 {
		pkgs, err := b.closure(ctx, below)
		if err != nil {
			return nil, err
		}
		for _, p := range pkgs {
			there[p.Name] = true
		}
	}
	all, err := b.closure(ctx, append(below, stack[top].packages...))
	if err != nil {
		return nil, err
	}
	var added []debian.Package
	for _, p := range all {
		if !there[p.Name] {
			added = append(added, p)
		}
	}
	return added, nil
}

// about is what is known of a finished layer.
type about struct {
	Digest, DiffID v1.Hash
	Size           int64
	Files          int // entries that are not directories
	Packages       []string
}

// layerWriter writes a layer as a compressed tar and hashes both.
type layerWriter struct {
	out    *os.File
	gz     *gzip.Writer
	tar    *tar.Writer
	diff   hash.Hash
	digest hash.Hash
	size   counter
	seen   map[string]bool
	copies map[string][]byte // small files that our own files may copy
	about  about
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func newLayerWriter(file string, level int) (*layerWriter, error) {
	out, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	w := &layerWriter{out: out, diff: sha256.New(), digest: sha256.New(), seen: map[string]bool{}, copies: map[string][]byte{}}
	if w.gz, err = gzip.NewWriterLevel(io.MultiWriter(out, w.digest, &w.size), level); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	w.tar = tar.NewWriter(io.MultiWriter(w.gz, w.diff))
	return w, nil
}

// excluded says what Debian's slim images leave out: documentation other than
// licences, and translations.
func excluded(name string) bool {
	for _, dir := range []string{"usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/locale/", "usr/share/lintian/", "usr/share/groff/"} {
		if strings.HasPrefix(name, dir) {
			return !strings.HasSuffix(name, "/copyright")
		}
	}
	return false
}

// merged moves a path of the old top-level directories under /usr, where the
// base layer's symlinks point.
func merged(name string) string {
	first, _, _ := strings.Cut(name, "/")
	switch first {
	case "bin", "sbin", "lib", "lib32", "lib64", "libx32":
		return "usr/" + name
	}
	return name
}

// add writes one entry of a package.
func (w *layerWriter) add(h *tar.Header, r io.Reader) error {
	if h.Name == "." {
		return nil
	}
	name := merged(h.Name)
	if excluded(name) || (h.Typeflag == tar.TypeDir && w.seen[name]) {
		return nil
	}
	if err := w.parents(name, h); err != nil {
		return err
	}
	w.seen[name] = true
	o := &tar.Header{
		Typeflag: h.Typeflag, Name: name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode & 0o7777,
		Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime, Devmajor: h.Devmajor, Devminor: h.Devminor,
	}
	switch h.Typeflag {
	case tar.TypeDir:
		o.Name += "/"
	case tar.TypeLink:
		o.Linkname = merged(h.Linkname)
	}
	if err := w.header(o); err != nil {
		return err
	}
	const small = 64 << 10
	if h.Typeflag != tar.TypeReg || h.Size > small {
		_, err := io.Copy(w.tar, r)
		return err
	}
	text, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if strings.HasSuffix(name, ".master") {
		w.copies[name] = text
	}
	_, err = w.tar.Write(text)
	return err
}

// parents writes the directories above name that this layer lacks.
func (w *layerWriter) parents(name string, h *tar.Header) error {
	dir := path.Dir(name)
	if dir == "." || w.seen[dir] {
		return nil
	}
	if err := w.parents(dir, h); err != nil {
		return err
	}
	w.seen[dir] = true
	return w.header(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: h.ModTime})
}

// addFile writes one file of ours.
func (w *layerWriter) addFile(f file) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: f.mode, ModTime: created()}
	text := []byte(f.text)
	switch {
	case f.link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.link, 0o777
	case strings.HasSuffix(f.path, "/"):
		h.Typeflag = tar.TypeDir
	case f.copy != "":
		var ok bool
		if text, ok = w.copies[f.copy]; !ok {
			return fmt.Errorf("no package has %s, to be copied to %s", f.copy, f.path)
		}
	}
	switch {
	case h.Mode != 0:
	case h.Typeflag == tar.TypeDir:
		h.Mode = 0o755
	default:
		h.Mode = 0o644
	}
	if err := w.parents(path.Clean(f.path), h); err != nil {
		return err
	}
	w.seen[path.Clean(f.path)] = true
	if h.Typeflag == tar.TypeReg {
		h.Size = int64(len(text))
	}
	if err := w.header(h); err != nil {
		return err
	}
	_, err := w.tar.Write(text)
	return err
}

// header writes the header of any entry.
func (w *layerWriter) header(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		w.about.Files++
	}
	return w.tar.WriteHeader(h)
}

// addStream writes a regular file of size bytes of content.
func (w *layerWriter) addStream(name string, mode, size int64, content io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size, ModTime: created()}
	if err := w.parents(name, h); err != nil {
		return err
	}
	w.seen[name] = true
	if err := w.header(h); err != nil {
		return err
	}
	_, err := io.CopyN(w.tar, content, size)
	return err
}

func (w *layerWriter) finish() (about, error) {
	if err := errors.Join(w.tar.Close(), w.gz.Close(), w.out.Close()); err != nil {
		return about{}, err
	}
	w.about.Digest = v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", w.digest.Sum(nil))}
	w.about.DiffID = v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", w.diff.Sum(nil))}
	w.about.Size = int64(w.size)
	return w.about, nil
}

// layer is a finished layer in the cache.
type layer struct {
	blob      string
	about     about
	mediaType types.MediaType
}

var _ v1.Layer = (*layer)(nil)

// Digest, DiffID, Size, MediaType, Compressed and Uncompressed implement [v1.Layer].

func (l *layer) Digest() (v1.Hash, error)            { return l.about.Digest, nil }
func (l *layer) DiffID() (v1.Hash, error)            { return l.about.DiffID, nil }
func (l *layer) Size() (int64, error)                { return l.about.Size, nil }
func (l *layer) MediaType() (types.MediaType, error) { return l.mediaType, nil }
func (l *layer) Compressed() (io.ReadCloser, error)  { return os.Open(l.blob) }
func (l *layer) Uncompressed() (io.ReadCloser, error) {
	f, err := os.Open(l.blob)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{z, f}, nil
}
