package watch

import (
	"strings"
	"time"
)

// Recheck is how long a known tag is believed before it is looked at again.
// Most that can move have names without a digit (latest, stable, main), and are
// looked at in every scan, as are tags that were seen to move. The others wait an
// eighth of the time that they have not changed for, between interval and most:
// what is pushed again is usually pushed again soon.
func Recheck(name string, moved bool, unchanged, interval, most time.Duration) time.Duration {
	if moved || !strings.ContainsAny(name, "0123456789") {
		return interval
	}
	return min(max(unchanged/8, interval), max(most, interval))
}

// due says whether a tag is to be looked at again.
func (t *tag) due(name string, now time.Time, interval, most time.Duration) bool {
	// A scan that comes a little early, by jitter, must not skip a turn.
	const slack = 8
	wait := Recheck(name, t.moved, now.Sub(t.changed), interval, most)
	return now.Sub(t.looked) >= wait-wait/slack
}
