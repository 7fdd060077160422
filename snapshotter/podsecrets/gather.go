package podsecrets

import (
	"cmp"
	"slices"

	"github.com/apparate/apparate/snapshotter/source"
)

// maxFile bounds the file, in bytes. The snapshotter reads 16 MiB of one, and none of
// it if there is more.
const maxFile = 8 << 20

// gather puts the credentials of pods in the order in which they are tried, each once.
// Each is there for the images of its pods, too: what is for one repository is tried
// before what is for its registry, and of many only some are tried. For each key the
// namespaces take turns, so that one that is full of secrets does not keep those of
// others from being tried. left is how many are too many.
func gather(pods []*pod, of func(*pod) []source.Auth) (list []source.Auth, left int) {
	slices.SortFunc(pods, func(a, b *pod) int { return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name)) })
	type place struct{ namespace, key string }
	type turn struct {
		source.Auth
		n int
	}
	var all []turn
	counts, seen := map[place]int{}, map[source.Auth]bool{}
	add := func(p *pod, a source.Auth) {
		if seen[a] {
			return
		}
		seen[a] = true
		at := place{p.namespace, a.Key}
		all = append(all, turn{a, counts[at]})
		counts[at]++
	}
	for _, p := range pods {
		for _, a := range of(p) {
			for _, img := range p.images {
				if a.For(img.host, img.repo) {
					add(p, source.Auth{Key: source.Key(img.host, img.repo), Credential: a.Credential})
				}
			}
			add(p, a)
		}
	}
	slices.SortStableFunc(all, func(a, b turn) int { return cmp.Compare(a.n, b.n) })
	size := 0
	for _, a := range all {
		text, err := source.MarshalAuths([]source.Auth{a.Auth})
		if err != nil || size+len(text) > maxFile {
			left++
			continue
		}
		size += len(text)
		list = append(list, a.Auth)
	}
	return list, left
}
