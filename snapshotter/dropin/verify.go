package dropin

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Verify compares containerd's dumps without and with Plan.DropIn, both of the
// same program: ours is the default snapshotter and has what it needs, and nothing
// else changed. The error names the key.
func Verify(before, after []byte, in Input) error {
	old, now, err := dumps(before, after)
	if err != nil {
		return err
	}
	f, err := factsOf(now)
	if err != nil {
		return err
	}
	if f.Snapshotter != in.Name {
		return fmt.Errorf("the default snapshotter would be %q, not %q: another file that containerd imports sets it later, or %s is not imported",
			f.Snapshotter, in.Name, in.Glob)
	}
	if err := served(now, f, in); err != nil {
		return err
	}
	return unchanged(old, now, in.Name)
}

// VerifyDrain compares the dumps without and with Plan.Drain: the default is
// original, ours is still there for its containers, and nothing else changed.
func VerifyDrain(before, after []byte, in Input, original string) error {
	old, now, err := dumps(before, after)
	if err != nil {
		return err
	}
	f, err := factsOf(now)
	if err != nil {
		return err
	}
	if f.Snapshotter != original {
		return fmt.Errorf("the default snapshotter would be %q, not %q as it was", f.Snapshotter, original)
	}
	if f.Proxies[in.Name] != in.Socket {
		return fmt.Errorf("proxy_plugins.%s.address would be %q, not %q", in.Name, f.Proxies[in.Name], in.Socket)
	}
	return unchanged(old, now, in.Name)
}

// dumps decodes both.
func dumps(before, after []byte) (tree, tree, error) {
	old, err := parse("containerd config dump before", before)
	if err != nil {
		return nil, nil, err
	}
	now, err := parse("containerd config dump after", after)
	return old, now, err
}

// served checks that the snapshotter of in can be reached and is told of images.
func served(t tree, f Facts, in Input) error {
	proxy := t.table("proxy_plugins", in.Name)
	key := keyPath([]string{"proxy_plugins", in.Name})
	if proxy.text("type") != "snapshot" || proxy.text("address") != in.Socket {
		return fmt.Errorf("%s would be type %q at %q, not snapshot at %q", key, proxy.text("type"), proxy.text("address"), in.Socket)
	}
	// Older programs do not print exports.
	if exports := proxy.table("exports"); exports != nil && exports.text("root") != in.Root {
		return fmt.Errorf("%s.exports.root would be %q, not %q", key, exports.text("root"), in.Root)
	}
	images := t.table("plugins", imagesV3)
	if images == nil {
		if t.get("plugins", criV2, "containerd", "disable_snapshot_annotations") != false {
			return fmt.Errorf("%s would not be false", keyPath([]string{"plugins", criV2, "containerd", "disable_snapshot_annotations"}))
		}
		return nil
	}
	if proxy.text("exports", "root") != in.Root {
		return fmt.Errorf("%s.exports.root would be missing", key)
	}
	if !f.TransferService {
		if images["disable_snapshot_annotations"] != false {
			return fmt.Errorf("%s would not be false, though images are pulled by the client", keyPath([]string{"plugins", imagesV3, "disable_snapshot_annotations"}))
		}
		return nil
	}
	if proxy.text("exports", "enable_remote_snapshot_annotations") != "true" {
		return fmt.Errorf(`%s.exports.enable_remote_snapshot_annotations would not be "true"`, key)
	}
	list, _ := t.get("plugins", transferV3, "unpack_config").([]any)
	for _, e := range list {
		if m, ok := e.(map[string]any); ok && m["snapshotter"] == in.Name {
			return nil
		}
	}
	return fmt.Errorf("%s would not have %s: no image could be pulled", keyPath([]string{"plugins", transferV3, "unpack_config"}), in.Name)
}

// unchanged reports the first key, in order, that differs and is none of those
// that we set.
func unchanged(old, now tree, name string) error {
	free := []string{
		keyPath([]string{"proxy_plugins", name}) + ".",
		keyPath([]string{"plugins", criV2, "containerd", "snapshotter"}),
		keyPath([]string{"plugins", criV2, "containerd", "disable_snapshot_annotations"}),
		keyPath([]string{"plugins", imagesV3, "snapshotter"}),
		keyPath([]string{"plugins", imagesV3, "disable_snapshot_annotations"}),
	}
	a, b := map[string]string{}, map[string]string{}
	flatten(old, nil, name, a)
	flatten(now, nil, name, b)
	keys := make([]string, 0, len(a)+len(b))
	for k := range a {
		keys = append(keys, k)
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if slices.ContainsFunc(free, func(f string) bool { return k == f || strings.HasSuffix(f, ".") && strings.HasPrefix(k, f) }) {
			continue
		}
		was, had := a[k]
		is, has := b[k]
		switch {
		case had && !has:
			return fmt.Errorf("%s would be lost, which was %s", k, hide(k, was))
		case !had && has:
			return fmt.Errorf("%s would appear, as %s", k, hide(k, is))
		case was != is:
			return fmt.Errorf("%s would change from %s to %s", k, hide(k, was), hide(k, is))
		}
	}
	return nil
}

// hide keeps what may be a password out of an error.
func hide(key, value string) string {
	for _, word := range []string{"registry.", "auth", "password", "token", "secret", "headers"} {
		if strings.Contains(strings.ToLower(key), word) {
			return "(not shown)"
		}
	}
	return value
}

// flatten writes every value of t below path into all, as text. imports are the
// files that were read, in 1.x in any order; of unpack_config only what others
// than we put there is compared.
func flatten(t tree, path []string, name string, all map[string]string) {
	for k, v := range t {
		at := append(slices.Clone(path), k)
		if m, ok := v.(map[string]any); ok {
			flatten(m, at, name, all)
			continue
		}
		if len(at) == 1 && k == "imports" {
			continue
		}
		if len(at) == 3 && at[1] == transferV3 && k == "unpack_config" {
			v = withoutOurs(v, name)
			if v == nil {
				continue
			}
		}
		all[keyPath(at)] = valueText(v)
	}
}

// withoutOurs returns an unpack_config without what Make adds: our entry, and the
// entries that containerd fills in where there is no list; nil for nothing.
func withoutOurs(v any, name string) any {
	list, ok := v.([]any)
	if !ok {
		return v
	}
	var rest []any
	for _, e := range list {
		m, ok := e.(map[string]any)
		if ok && (m["snapshotter"] == name ||
			m["snapshotter"] == defaultSnapshotter && m["platform"] == "linux" && m["differ"] == "walking" ||
			m["snapshotter"] == "erofs" && m["platform"] == "linux(+erofs)" && m["differ"] == "erofs") {
			continue
		}
		rest = append(rest, e)
	}
	if rest == nil {
		return nil
	}
	return rest
}

// valueText writes a value as TOML.
func valueText(v any) string {
	b, err := toml.Marshal(map[string]any{"v": v})
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(bytes.TrimSpace(bytes.TrimPrefix(b, []byte("v = "))))
}
