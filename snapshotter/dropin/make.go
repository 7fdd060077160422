package dropin

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
)

// defaultSnapshotter is containerd's own choice on Linux, in every version.
const defaultSnapshotter = "overlayfs"

// built are the snapshotters that containerd brings along.
var built = []string{"overlayfs", "native", "btrfs", "zfs", "aufs", "devmapper", "blockfile", "erofs"}

// Make plans the configuration of in. Nothing is to be changed after an error.
func Make(in Input) (Plan, error) {
	r, err := supported(in.Version)
	if err != nil {
		return Plan{}, err
	}
	if err := in.check(); err != nil {
		return Plan{}, err
	}
	files, err := in.sources(r)
	if err != nil {
		return Plan{}, err
	}
	dump, err := parse("containerd config dump", in.Dump)
	if err != nil {
		return Plan{}, err
	}
	if err := criEnabled(files, dump); err != nil {
		return Plan{}, err
	}
	b := builder{in: in, release: r, files: files, dump: dump}
	if r.atLeast(2, 0, 0) {
		err = b.deep()
	} else {
		err = b.whole()
	}
	if err != nil {
		return Plan{}, err
	}
	b.plan.Main, err = in.newMain(r, files[0].tree)
	if err != nil {
		return Plan{}, err
	}
	b.explain()
	return b.plan, nil
}

var (
	safePath = regexp.MustCompile(`^/[A-Za-z0-9/._*@+~-]+$`)
	safeName = regexp.MustCompile(`^[A-Za-z0-9]+(?:[-_.][A-Za-z0-9]+)*$`) // as containerd's identifiers
)

// check says what is missing in in.
func (in *Input) check() error {
	for _, f := range []struct{ name, path string }{
		{"MainPath", in.MainPath}, {"Glob", in.Glob}, {"Socket", in.Socket}, {"Root", in.Root},
	} {
		if !safePath.MatchString(f.path) || filepath.Clean(f.path) != f.path {
			return fmt.Errorf("%s %q: give a clean absolute path of letters, digits and ._-", f.name, f.path)
		}
	}
	if !safeName.MatchString(in.Name) || slices.Contains(built, in.Name) {
		return fmt.Errorf("name %q: give one that no snapshotter has, of letters and digits", in.Name)
	}
	return nil
}

// criEnabled refuses a containerd whose CRI is switched off, as in the package of
// Docker: our snapshotter would serve nobody.
func criEnabled(files []source, dump tree) error {
	off := []string{criV1, criV2, imagesV3, runtimeV3}
	for _, f := range append(slices.Clone(files), source{path: "containerd config dump", tree: dump}) {
		for _, p := range f.tree.strings("disabled_plugins") {
			if slices.Contains(off, p) {
				return fmt.Errorf("%s: disabled_plugins has %q, so kubelet cannot use this containerd: take it out of the list", f.path, p)
			}
		}
	}
	return nil
}

// newMain returns the main file with our import, which it checks.
func (in *Input) newMain(r release, old tree) ([]byte, error) {
	if in.Main == nil {
		version := 2
		if r.atLeast(2, 0, 0) {
			version = 3
		}
		return fmt.Appendf(nil, "%sversion = %d\nimports = [%s]%s\n", created, version, quote(in.Glob), marker), nil
	}
	next, err := addImport(in.Main, in.Glob, false)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", in.MainPath, err)
	}
	// The same tree but for the import, or nothing is changed.
	t, err := parse(in.MainPath, next)
	if err != nil {
		return nil, fmt.Errorf("%s with an import of %s would not be TOML: add that import by hand: %w", in.MainPath, in.Glob, err)
	}
	if !slices.Contains(t.strings("imports"), in.Glob) {
		return nil, fmt.Errorf("%s: add %s to imports by hand", in.MainPath, quote(in.Glob))
	}
	want, got := maps.Clone(old), maps.Clone(t)
	delete(want, "imports")
	delete(got, "imports")
	a, errA := want.encode()
	b, errB := got.encode()
	if err := errors.Join(errA, errB); err != nil || !bytes.Equal(a, b) {
		return nil, fmt.Errorf("%s: add %s to imports by hand: %w", in.MainPath, quote(in.Glob), errors.Join(err, errSyntax))
	}
	return next, nil
}

// created begins a main file that was not there before.
const created = "# Written by apparate, which removes it again; containerd ran without this file.\n"

// builder collects a Plan.
type builder struct {
	in      Input
	release release
	files   []source
	dump    tree
	plan    Plan
	notes   []string
	// annotations are switched on by the flag of CRI, not by the proxy plugin.
	local bool
}

// proxy is the proxy plugin's table. exports.root is where containerd 1.7 and
// later measure the image file system; older ones take it from the name.
func (b *builder) proxy() map[string]any {
	exports := map[string]any{"root": b.in.Root}
	if b.release.atLeast(2, 0, 0) {
		exports["enable_remote_snapshot_annotations"] = "true"
	}
	return map[string]any{b.in.Name: map[string]any{
		"type": "snapshot", "address": b.in.Socket, "exports": exports,
	}}
}

// finish writes the two drop-ins; plugins is what only the first one has.
func (b *builder) finish(version int, plugins map[string]any) error {
	drain := tree{"version": int64(version), "proxy_plugins": b.proxy()}
	full := maps.Clone(drain)
	full["plugins"] = plugins
	for _, f := range []struct {
		out   *[]byte
		tree  tree
		title string
	}{
		{&b.plan.DropIn, full, "# Written by apparate. Changes are lost.\n"},
		{&b.plan.Drain, drain, "# Written by apparate, until the last container that uses it is gone.\n"},
	} {
		text, err := f.tree.encode()
		if err != nil {
			return fmt.Errorf("write the drop-in: %w", err)
		}
		// What was written must be read as what was meant.
		again, err := parse("drop-in", text)
		if err != nil {
			return err
		}
		if t, err := again.encode(); err != nil || !bytes.Equal(t, text) {
			return fmt.Errorf("the drop-in does not survive being read: %w", errors.Join(err, errSyntax))
		}
		*f.out = append([]byte(f.title), text...)
	}
	return nil
}

// original finds the default snapshotter without us: what the files say, else
// what the dump says when that is not ours.
func (b *builder) original(written string, where string) error {
	b.plan.Original = written
	if written == b.in.Name {
		return fmt.Errorf("%s: snapshotter is %q already: take that line out, apparate sets it in %s", where, b.in.Name, b.in.Glob)
	}
	if written == "" {
		b.plan.Original = defaultSnapshotter
		if f, err := factsOf(b.dump); err == nil && f.Snapshotter != b.in.Name && f.Snapshotter != "" {
			b.plan.Original = f.Snapshotter
		}
	}
	return nil
}

// whole plans for containerd 1.x, in which an imported file's section of a plugin
// replaces the whole section. So the drop-in has a copy of the section that counts
// so far, from the file and not from the dump: 1.4 leaves the options of runtimes
// out of its dump, and a dump would freeze the defaults of this version.
func (b *builder) whole() error {
	version := effectiveVersion(b.files)
	if b.in.Main == nil {
		version = 2
	}
	if version > 2 {
		return fmt.Errorf("%s: version %d is not for containerd %s: write version = 2", b.in.MainPath, version, b.release)
	}
	name := criV2
	if version == 1 {
		name = criV1
	}
	section, where := tree{}, b.in.MainPath
	for _, f := range b.files {
		got := f.tree.get("plugins", name)
		if got == nil {
			continue
		}
		table, ok := got.(map[string]any)
		if !ok {
			return fmt.Errorf("%s: %s is no table: correct it first", f.path, keyPath([]string{"plugins", name}))
		}
		section, where = table, f.path
		if f.late {
			return fmt.Errorf("%s has %s, and containerd reads it after all that %s imports: import it there",
				f.path, keyPath([]string{"plugins", name}), b.in.MainPath)
		}
	}
	if err := b.original(section.text("containerd", "snapshotter"), where); err != nil {
		return err
	}
	b.local = true
	section = section.clone()
	if err := errors.Join(section.set(b.in.Name, "containerd", "snapshotter"),
		section.set(false, "containerd", "disable_snapshot_annotations")); err != nil {
		return fmt.Errorf("%s: %w: correct it first", where, err)
	}
	if len(section) > 1 {
		b.notes = append(b.notes, fmt.Sprintf("the CRI section of %s is copied, for containerd %s knows no other way: a change there counts once apparate wrote its file anew", where, b.release))
	}
	return b.finish(version, map[string]any{name: map[string]any(section)})
}

// clone returns a deep copy of the tables of t.
func (t tree) clone() tree {
	c := make(tree, len(t))
	for k, v := range t {
		if m, ok := v.(map[string]any); ok {
			v = map[string]any(tree(m).clone())
		}
		c[k] = v
	}
	return c
}

// deep plans for containerd 2.x, which merges the keys of imported files. How CRI
// pulls stays as it is: by the transfer service where it does (2.1 and later, if
// no other setting forbids it), which tells the snapshotter about images because
// the proxy plugin's exports ask for it, and unpacks for snapshotters that its
// unpack_config names; else by the client, which does because of CRI's own flag.
// Setting the flag in every case would work too, but silently move all pulls to
// the client, past image verifiers, and have the pause image, when it is unpacked
// late, fetched lazily before there are credentials.
func (b *builder) deep() error {
	v, f := last(b.files, "snapshotter")
	written, _ := v.(string)
	where := b.in.MainPath
	if f != nil {
		where = f.path
		if f.late {
			return fmt.Errorf("%s sets snapshotter, and containerd reads it after all that %s imports: import it there", f.path, b.in.MainPath)
		}
	}
	if err := b.original(written, where); err != nil {
		return err
	}
	for _, f := range b.files {
		if v := f.tree.version(); v > 4 || v == 4 && !b.release.atLeast(2, 3, 0) {
			return fmt.Errorf("%s: version %d is not for containerd %s: write version = 3", f.path, v, b.release)
		}
	}
	images := map[string]any{"snapshotter": b.in.Name}
	plugins := map[string]any{imagesV3: images}
	b.local = !b.transfers()
	if b.local {
		images["disable_snapshot_annotations"] = false
	} else {
		plugins[transferV3] = map[string]any{"unpack_config": b.unpackConfig()}
	}
	return b.finish(3, plugins)
}

// transfers says whether CRI pulls by the transfer service without us. The flag
// for annotations comes from the files, as in the dump it may be ours.
func (b *builder) transfers() bool {
	images := b.dump.table("plugins", imagesV3).clone()
	images["disable_snapshot_annotations"] = true
	if v, _ := last(b.files, "disable_snapshot_annotations"); v == false {
		images["disable_snapshot_annotations"] = false
	}
	return transferService(images)
}

// unpackConfig is what the transfer service can unpack for: what it could before,
// as the list of an import replaces the one before, and ours.
func (b *builder) unpackConfig() []any {
	var list []any
	before, ok := b.dump.get("plugins", transferV3, "unpack_config").([]any)
	if !ok {
		list = append(list, map[string]any{"platform": "linux", "snapshotter": defaultSnapshotter, "differ": "walking"})
		if b.dump.table("plugins", erofsV3) != nil && b.release.atLeast(2, 3, 0) {
			list = append(list, map[string]any{"platform": "linux(+erofs)", "snapshotter": "erofs", "differ": "erofs", "optional": true})
		}
	}
	for _, e := range before {
		m, ok := e.(map[string]any)
		if !ok || m["snapshotter"] == b.in.Name {
			continue
		}
		m = maps.Clone(m)
		maps.DeleteFunc(m, func(_ string, v any) bool {
			list, empty := v.([]any)
			return v == "" || v == false || empty && len(list) == 0 // what a dump adds
		})
		list = append(list, m)
	}
	return append(list, map[string]any{"platform": "linux", "snapshotter": b.in.Name, "differ": "walking"})
}
