package dropin

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// base is the template that k3s adds to: all of its own configuration.
const base = `{{ template "base" . }}`

// stub is the name of our file in a directory of drop-ins.
const stub = "zz-apparate.toml"

// K3s describes how k3s or rke2 configures its containerd: it writes config.toml at
// each start, from a template in the same directory if there is one (containerd
// 1.x: config.toml.tmpl; 2.x: config-v3.toml.tmpl, or else config.toml.tmpl), and
// newer ones import a directory beside it (config.toml.d, config-v3.toml.d). See
// docs.k3s.io/advanced, "Configuring containerd".
type K3s struct {
	// Dir is e.g. /var/lib/rancher/k3s/agent/etc/containerd.
	Dir string
	// Rendered is config.toml in Dir.
	Rendered []byte
	// V2 and V3 are config.toml.tmpl and config-v3.toml.tmpl in Dir; nil: absent.
	V2, V3 []byte
	// Containerd is containerd's version, Version that of k3s or rke2, which is
	// kubelet's too: "v1.30.4+k3s1".
	Containerd, Version string
	// Glob is what is to be imported.
	Glob string
}

// Template is the file to change for k3s, in place of the main file. Restore takes
// Before and After.
type Template struct {
	// Path is the file; its directory may have to be made.
	Path string
	// Before is what it was, nil: it is new. After is what to write.
	Before, After []byte
	// Rendered is what config.toml then says that matters: Rendered with the import.
	// It is for trying the configuration; k3s writes it itself.
	Rendered []byte
	// Changes says so in lines for people.
	Changes []string
}

// Plan says which file makes the containerd of k3s import Glob. A directory of
// drop-ins is used where there is one: the import is then a file of its own there,
// which imports Glob in turn, and is read after all others.
func (k K3s) Plan() (Template, error) {
	r, err := supported(k.Containerd)
	if err != nil {
		return Template{}, err
	}
	config := filepath.Join(k.Dir, "config.toml")
	if !safePath.MatchString(k.Glob) || !safePath.MatchString(config) {
		return Template{}, fmt.Errorf("directory %q and glob %q: give clean absolute paths", k.Dir, k.Glob)
	}
	if k.Rendered == nil {
		return Template{}, fmt.Errorf("%s is not there: start k3s once, it writes the file", config)
	}
	t, err := parse(config, k.Rendered)
	if err != nil {
		return Template{}, err
	}
	for _, path := range t.strings("imports") {
		dir, file := filepath.Split(absolute(config, r, path))
		if file == "*.toml" && filepath.Dir(filepath.Clean(dir)) == filepath.Clean(k.Dir) {
			return Template{
				Path:     filepath.Join(dir, stub),
				After:    fmt.Appendf(nil, "%sversion = %d\nimports = [%s]\n", created, max(2, t.version()), quote(k.Glob)),
				Rendered: k.Rendered,
				Changes:  []string{fmt.Sprintf("%s imports %s", filepath.Join(dir, stub), k.Glob)},
			}, nil
		}
	}
	return k.template(r, t)
}

// template plans with a template of Dir, an existing one or a new one.
func (k K3s) template(r release, rendered tree) (Template, error) {
	name, before := "config.toml.tmpl", k.V2
	if r.atLeast(2, 0, 0) && (k.V3 != nil || k.V2 == nil) {
		name, before = "config-v3.toml.tmpl", k.V3
	}
	p := Template{Path: filepath.Join(k.Dir, name), Before: before}
	src := before
	if src == nil {
		if err := k.hasBase(); err != nil {
			return p, err
		}
		src = []byte(base + "\n")
	}
	var err error
	if p.After, err = addImport(src, k.Glob, true); err != nil {
		return p, fmt.Errorf("%s: %w: add %s to its imports by hand", p.Path, err, quote(k.Glob))
	}
	if p.Rendered, err = addImport(k.Rendered, k.Glob, false); err != nil {
		return p, fmt.Errorf("%s: %w", filepath.Join(k.Dir, "config.toml"), err)
	}
	others := slices.DeleteFunc(rendered.strings("imports"), func(path string) bool { return path == k.Glob })
	if len(others) > 0 && bytes.Contains(src, []byte(`"base"`)) && scan(src).find("imports") == nil {
		return p, fmt.Errorf("%s has imports that the base template brings: put a file that imports %s into a directory it names", filepath.Join(k.Dir, "config.toml"), k.Glob)
	}
	p.Changes = []string{fmt.Sprintf("%s imports %s", p.Path, k.Glob)}
	if bytes.Contains(src, []byte(`"base"`)) {
		p.Changes = append(p.Changes, "before k3s or rke2 is updated to a version whose own template has imports, uninstall apparate: two would stop containerd; a later install uses the new directory of drop-ins")
	}
	return p, nil
}

// hasBase says whether this k3s knows the base template: since v1.24.17, v1.25.13,
// v1.26.8, v1.27.5 and v1.28.1. Others could not start with it.
func (k K3s) hasBase() error {
	v, err := parseRelease(k.Version)
	if err != nil {
		return fmt.Errorf("version of k3s: %w", err)
	}
	first := map[int]int{24: 17, 25: 13, 26: 8, 27: 5, 28: 1}
	patch, listed := first[v.minor]
	if v.major < 1 || v.major == 1 && v.minor < 24 || v.major == 1 && listed && v.patch < patch {
		return fmt.Errorf("%s has no base template to add to: update it, or copy %s to config.toml.tmpl",
			strings.TrimSpace(k.Version), filepath.Join(k.Dir, "config.toml"))
	}
	return nil
}
