package accelerationrule

import (
	"context"
	"sync"

	"github.com/apparate/apparate/controllers/match"
	"github.com/apparate/apparate/controllers/watch"
)

// Count is how many tags of a registry a rule is for.
type Count struct {
	// Matched tags are converted because of the rule, or would be if the instance
	// were switched on; Converted ones have an accelerated image.
	Matched, Converted int64
}

// Counts counts tags by rule. All rules of a registry are counted in one pass,
// and again only when tags or rules have changed.
type Counts struct {
	Book      *Book
	Inventory *watch.Inventory

	mu   sync.Mutex
	seen map[match.Key]counted
}

type counted struct {
	version int64
	set     *match.Set
	rules   map[match.Key]Count
}

// Of returns the count of a rule; complete says that the whole registry was
// scanned.
func (c *Counts) Of(ctx context.Context, registry, rule match.Key) (n Count, complete bool, err error) {
	set, err := c.Book.Set(ctx)
	if err != nil {
		return Count{}, false, err
	}
	version, complete := c.Inventory.Version(registry)
	c.mu.Lock()
	defer c.mu.Unlock()
	have, ok := c.seen[registry]
	if !ok || have.version != version || have.set != set {
		have = counted{version, set, map[match.Key]Count{}}
		c.Inventory.Each(registry, func(repo, tag string, accelerated bool) {
			d := set.Decide(match.Image{Registry: registry, Repository: repo, Tag: tag})
			if d.Rule == nil {
				return
			}
			n := have.rules[d.Rule.Key]
			n.Matched++
			if accelerated {
				n.Converted++
			}
			have.rules[d.Rule.Key] = n
		})
		if c.seen == nil {
			c.seen = map[match.Key]counted{}
		}
		c.seen[registry] = have
	}
	return have.rules[rule], complete, nil
}
