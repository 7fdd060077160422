package main

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// readAll reads the results of several calls, whose files are separated by commas, as
// those of one. Ratios are of the same rounds: what a later call says of an image on a
// network replaces all that an earlier one said of that.
func readAll(files string) (*Results, error) {
	var all *Results
	for file := range strings.SplitSeq(files, ",") {
		r, err := readResults(file)
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = r
		} else {
			all.merge(r)
		}
	}
	return all, nil
}

// merge adds the results of a later call.
func (r *Results) merge(o *Results) {
	r.Took += o.Took
	r.Machine = o.Machine
	if o.Tier != r.Tier {
		r.Tier += " and " + o.Tier
	}
	r.Peers = union(r.Peers, o.Peers)
	for _, i := range o.Images {
		k := slices.IndexFunc(r.Images, func(x Image) bool { return x.Name == i.Name })
		switch {
		case !slices.ContainsFunc(o.Runs, func(x Run) bool { return x.Image == i.Name }):
			// It was only started along with others, and there is nothing for its row.
		case k < 0:
			r.Images = append(r.Images, i)
		default:
			r.Images[k] = mergeImage(r.Images[k], i)
		}
	}
	for _, n := range o.Networks {
		if !slices.ContainsFunc(r.Networks, func(x Network) bool { return x.Name == n.Name }) {
			r.Networks = append(r.Networks, n)
		}
	}
	slices.SortFunc(r.Networks, func(a, b Network) int { return cmp.Compare(networkRank(a), networkRank(b)) })
	r.Runs = replace(r.Runs, o.Runs, func(x Run) [2]string { return [2]string{x.Image, x.Network} })
	r.Bursts = replace(r.Bursts, o.Bursts, func(x Burst) [2]string { return [2]string{x.Scenario, x.Network} })
	r.Steady = replace(r.Steady, o.Steady, func(x Steady) [2]string { return [2]string{x.Image} })
	r.Left = append(r.Left, o.Left...)
}

// mergeImage is what a later call says of an image. Conversions that it kept have no times;
// those of the earlier call do.
func mergeImage(old, later Image) Image {
	variants := union(old.Variants, later.Variants)
	for name, v := range old.Variants {
		if now := variants[name]; now.Seconds == 0 && now.Size == v.Size {
			variants[name] = v
		}
	}
	later.Variants = variants
	return later
}

// union has what is in a and what is in b, which has the last word.
func union[V any](a, b map[string]V) map[string]V {
	all := make(map[string]V, len(a)+len(b))
	maps.Copy(all, a)
	maps.Copy(all, b)
	return all
}

// networkRank is the place of a network in tables.
func networkRank(n Network) int {
	return slices.IndexFunc(networks(), func(x Network) bool { return x.Name == n.Name })
}

// replace returns what there is of old with keys that none of fresh has, and fresh.
func replace[T any](old, fresh []T, key func(T) [2]string) []T {
	keys := map[[2]string]bool{}
	for _, x := range fresh {
		keys[key(x)] = true
	}
	return append(slices.DeleteFunc(slices.Clone(old), func(x T) bool { return keys[key(x)] }), fresh...)
}
