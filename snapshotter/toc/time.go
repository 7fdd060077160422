package toc

import (
	"time"
)

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
	const shortest = len("2006-01-02T15:04:05Z")
	if len(t) < shortest || t[4] != '-' || t[7] != '-' || t[10] != 'T' || t[13] != ':' || t[16] != ':' || t[len(t)-1] != 'Z' {
		return 0, 0, false
	}
	year, ok0 := digits(t[:4])
	month, ok1 := digits(t[5:7])
	day, ok2 := digits(t[8:10])
	hour, ok3 := digits(t[11:13])
	minute, ok4 := digits(t[14:16])
	second, ok5 := digits(t[17:19])
	if !ok0 || !ok1 || !ok2 || !ok3 || !ok4 || !ok5 ||
		month < 1 || month > 12 || day < 1 || day > 28 || hour > 23 || minute > 59 || second > 59 {
		return 0, 0, false
	}
	if fraction := t[19 : len(t)-1]; len(fraction) > 0 {
		const longest = 1 + 9 // the point and nanoseconds
		f, fok := digits(fraction[1:])
		if fraction[0] != '.' || len(fraction) < 2 || len(fraction) > longest || !fok {
			return 0, 0, false
		}
		for range longest - len(fraction) {
			f *= 10
		}
		nsec = uint32(f)
	}
	days := daysSinceEpoch(year, month, day)
	return days*86400 + int64(hour*3600+minute*60+second), nsec, true
}

// digits reads a number of decimal digits only.
func digits(t []byte) (n int, ok bool) {
	for _, c := range t {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
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
