package dropin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Read returns the main file at path, nil where there is none, and the files it
// imports in the order in which containerd of that version reads them, without
// those that glob matches: the main file, then what it imports, then what those
// import, each once.
func Read(path, version, glob string) (main []byte, imported []File, err error) {
	r, err := supported(version)
	if err != nil {
		return nil, nil, err
	}
	var (
		pending = []string{path}
		seen    = map[string]bool{}
	)
	for len(pending) > 0 {
		name := pending[0]
		pending = pending[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		data, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) && name == path {
			return nil, nil, nil
		}
		if err != nil {
			return nil, nil, fmt.Errorf("containerd's configuration: %w", err)
		}
		t, err := parse(name, data)
		if err != nil {
			return nil, nil, err
		}
		if name == path {
			main = data
			if main == nil {
				main = []byte{}
			}
		} else {
			imported = append(imported, File{Path: name, Data: data})
		}
		more, err := resolve(name, r, t.strings("imports"), glob)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: imports: %w", name, err)
		}
		pending = append(pending, more...)
	}
	return main, imported, nil
}

// resolve returns the files that the imports of parent name, without ours.
func resolve(parent string, r release, imports []string, ours string) ([]string, error) {
	var all []string
	for _, path := range imports {
		path = absolute(parent, r, path)
		if path == filepath.Clean(ours) {
			continue
		}
		if !strings.Contains(path, "*") {
			all = append(all, path)
			continue
		}
		found, err := filepath.Glob(path)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", path, err)
		}
		all = append(all, found...)
	}
	return slices.DeleteFunc(all, func(path string) bool {
		own, err := filepath.Match(ours, path)
		return err == nil && own
	}), nil
}

// absolute returns an import of parent as an absolute path. Patterns of
// containerd before 1.7 are relative to its working directory, which is / for a
// service; all else is relative to the file.
func absolute(parent string, r release, path string) string {
	path = filepath.Clean(path)
	switch {
	case filepath.IsAbs(path):
		return path
	case strings.Contains(path, "*") && !r.atLeast(1, 7, 0):
		return filepath.Join("/", path)
	}
	return filepath.Join(filepath.Dir(parent), path)
}

// source is a decoded file.
type source struct {
	path string
	tree tree
	// late: containerd reads it after the files that the main one imports, so
	// after ours.
	late bool
}

// sources decodes in's files, the main one first.
func (in *Input) sources(r release) ([]source, error) {
	main, err := parse(in.MainPath, in.Main)
	if err != nil {
		return nil, err
	}
	all := []source{{path: in.MainPath, tree: main}}
	var direct []string
	for _, path := range main.strings("imports") {
		path = absolute(in.MainPath, r, path)
		direct = append(direct, path)
		known := slices.ContainsFunc(in.Imported, func(f File) bool { return f.Path == path })
		if !known && path != in.MainPath && !strings.Contains(path, "*") {
			if own, err := filepath.Match(in.Glob, path); err != nil || !own {
				return nil, fmt.Errorf("%s imports %s, which was not given to Make: use Read", in.MainPath, path)
			}
		}
	}
	for _, f := range in.Imported {
		t, err := parse(f.Path, f.Data)
		if err != nil {
			return nil, err
		}
		all = append(all, source{path: f.Path, tree: t, late: !slices.ContainsFunc(direct, func(pattern string) bool {
			ok, err := filepath.Match(pattern, f.Path)
			return err == nil && ok
		})})
	}
	return all, nil
}

// effectiveVersion is the version under which containerd 1.x reads all files: of
// several the last that names one.
func effectiveVersion(files []source) int {
	v := 1
	for _, f := range files {
		if f.tree["version"] != nil {
			v = f.tree.version()
		}
	}
	return v
}

// criKeys are the places of CRI's image settings in a file of a version.
func criKeys(version int) []string {
	switch version {
	case 1:
		return []string{"plugins", criV1, "containerd"}
	case 2:
		return []string{"plugins", criV2, "containerd"}
	}
	return []string{"plugins", imagesV3}
}

// last returns the last of the files whose own version's CRI settings have key,
// and what it says; nil where none has.
func last(files []source, key string) (any, *source) {
	for i := len(files) - 1; i >= 0; i-- {
		f := &files[i]
		path := append(criKeys(f.tree.version()), key)
		if v := f.tree.get(path...); v != nil {
			return v, f
		}
	}
	return nil, nil
}
