package toc

import "time"

// parseTime reads an RFC 3339 time, with or without a fraction of a second. The
// form that writers use, "2006-01-02T15:04:05Z", takes a short way.
func parseTime(t []byte) (sec int64, nsec uint32, ok bool) {
	if sec, nsec, ok = parseUTC(t); ok {
		return sec, nsec, true
	}
	full, err := time.Parse(time.RFC3339Nano, string(t))
	if err != nil {
		return 0, 0, false
	}
	return full.Unix(), uint32(full.Nanosecond()), true
}

// parseUTC is parseTime for times in UTC whose day is at most 28, which exists
// in every month; false means no more than that it does not know.
func parseUTC(t []byte) (sec int64, nsec uint32, ok bool) {
	const layout = "0000-00-00T00:00:00Z"
	if len(t) < len(layout) || t[len(t)-1] != 'Z' {
		return 0, 0, false
	}
	for i := range len(layout) - 1 {
		if c := layout[i]; c == '0' && (t[i] < '0' || t[i] > '9') || c != '0' && t[i] != c {
			return 0, 0, false
		}
	}
	year, month, day := number(t[:4]), number(t[5:7]), number(t[8:10])
	hour, minute, second := number(t[11:13]), number(t[14:16]), number(t[17:19])
	if month < 1 || month > 12 || day < 1 || day > 28 || hour > 23 || minute > 59 || second > 59 {
		return 0, 0, false
	}
	if nsec, ok = parseFraction(t[19 : len(t)-1]); !ok {
		return 0, 0, false
	}
	days := daysSinceEpoch(year, month, day)
	return days*86400 + int64(hour*3600+minute*60+second), nsec, true
}

// parseFraction reads a fraction of a second, ".5", in nanoseconds; 0 for none.
func parseFraction(t []byte) (nsec uint32, ok bool) {
	const longest = 1 + 9 // the point and the digits
	if len(t) == 0 {
		return 0, true
	}
	if t[0] != '.' || len(t) < 2 || len(t) > longest {
		return 0, false
	}
	for _, c := range t[1:] {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n := number(t[1:])
	for range longest - len(t) {
		n *= 10
	}
	return uint32(n), true
}

// number reads decimal digits.
func number(t []byte) (n int) {
	for _, c := range t {
		n = n*10 + int(c-'0')
	}
	return n
}

// daysSinceEpoch counts the days from 1970-01-01 to a date of the Gregorian
// calendar. The year is taken to begin in March, so that the leap day is its
// last and the months before it have a regular pattern of 153 days in five.
func daysSinceEpoch(year, month, day int) int64 {
	const epoch = 719468 // days from 0000-03-01 to 1970-01-01
	y, m := int64(year), int64(month)-3
	if m < 0 {
		y, m = y-1, m+12
	}
	leapDays := floorDiv(y, 4) - floorDiv(y, 100) + floorDiv(y, 400)
	return y*365 + leapDays + (m*153+2)/5 + int64(day) - 1 - epoch
}

// floorDiv is a divided by b>0, rounded down.
func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}
