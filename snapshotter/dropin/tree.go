package dropin

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Names of containerd's plugins, which are keys below "plugins".
const (
	criV1      = "cri" // files without a version, or with version 1
	criV2      = "io.containerd.grpc.v1.cri"
	imagesV3   = "io.containerd.cri.v1.images"
	runtimeV3  = "io.containerd.cri.v1.runtime"
	transferV3 = "io.containerd.transfer.v1.local"
	grpcV4     = "io.containerd.server.v1.grpc"
	erofsV3    = "io.containerd.snapshotter.v1.erofs"
)

// bom is the mark with which some editors begin a file.
const bom = "\ufeff"

// tree is a decoded file or dump.
type tree map[string]any

// parse decodes the TOML of data. The error names path, line and column.
func parse(path string, data []byte) (tree, error) {
	t := tree{}
	err := toml.Unmarshal(bytes.TrimPrefix(data, []byte(bom)), &t)
	var at *toml.DecodeError
	if errors.As(err, &at) {
		line, column := at.Position()
		return nil, fmt.Errorf("%s line %d column %d: %w: correct it first", path, line, column, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: correct it first", path, err)
	}
	return t, nil
}

// encode writes t; the same bytes for the same tree.
func (t tree) encode() ([]byte, error) {
	var b bytes.Buffer
	err := toml.NewEncoder(&b).SetIndentTables(true).Encode(map[string]any(t))
	return b.Bytes(), err
}

// get returns what is at the key path, nil where there is nothing.
func (t tree) get(path ...string) any {
	var v any = map[string]any(t)
	for _, key := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[key]
	}
	return v
}

// table returns the table at path, nil where there is none.
func (t tree) table(path ...string) tree {
	m, _ := t.get(path...).(map[string]any)
	return m
}

// text returns the string at path, "" where there is none.
func (t tree) text(path ...string) string {
	s, _ := t.get(path...).(string)
	return s
}

// on says whether there is a true at path.
func (t tree) on(path ...string) bool {
	b, _ := t.get(path...).(bool)
	return b
}

// strings returns the strings of the array at path.
func (t tree) strings(path ...string) []string {
	var all []string
	a, _ := t.get(path...).([]any)
	for _, v := range a {
		if s, ok := v.(string); ok {
			all = append(all, s)
		}
	}
	return all
}

// set puts v at path, making tables on the way; an error where there is
// something else than a table on it.
func (t tree) set(v any, path ...string) error {
	m := map[string]any(t)
	for i, key := range path[:len(path)-1] {
		switch next := m[key].(type) {
		case map[string]any:
			m = next
		case nil:
			made := map[string]any{}
			m[key] = made
			m = made
		default:
			return fmt.Errorf("%s is no table", keyPath(path[:i+1]))
		}
	}
	m[path[len(path)-1]] = v
	return nil
}

// version returns the version of the configuration in t; 1 where it has none.
func (t tree) version() int {
	if v, ok := t["version"].(int64); ok && v > 0 && v < 1000 {
		return int(v)
	}
	return 1
}

// keyPath writes a key path as TOML does.
func keyPath(path []string) string {
	quoted := make([]string, len(path))
	for i, key := range path {
		if bare.MatchString(key) {
			quoted[i] = key
		} else {
			quoted[i] = strconv.Quote(key)
		}
	}
	return strings.Join(quoted, ".")
}

var bare = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// release is a version of containerd, as far as it matters.
type release struct{ major, minor, patch int }

var number = regexp.MustCompile(`(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?`)

// parseRelease reads a version, of containerd or k3s, out of s.
func parseRelease(s string) (release, error) {
	m := number.FindStringSubmatch(s)
	if m == nil {
		return release{}, fmt.Errorf("%q is no version", s)
	}
	var r release
	r.major, _ = strconv.Atoi(m[1])
	r.minor, _ = strconv.Atoi(m[2])
	r.patch, _ = strconv.Atoi(m[3])
	return r, nil
}

// atLeast compares r with a version.
func (r release) atLeast(major, minor, patch int) bool {
	if r.major != major {
		return r.major > major
	}
	if r.minor != minor {
		return r.minor > minor
	}
	return r.patch >= patch
}

func (r release) String() string { return fmt.Sprintf("%d.%d.%d", r.major, r.minor, r.patch) }

// supported reads containerd's version and says which can be configured.
func supported(version string) (release, error) {
	r, err := parseRelease(version)
	if err != nil {
		return r, fmt.Errorf("containerd's version: %w", err)
	}
	if !r.atLeast(1, 4, 3) || r.atLeast(3, 0, 0) {
		return r, fmt.Errorf("containerd %s cannot be configured: 1.4.3 to 2.x can, install one of those", r)
	}
	return r, nil
}
