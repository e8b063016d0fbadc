package main

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gormsessions/gormsessions"
)

// figures are what the statistics page shows.
type figures struct {
	Active, Expired, Revoked, Keys int64
	Charts                         []chart
}

func (s *site) statistics(w http.ResponseWriter, r *http.Request, device *Device) error {
	project, err := s.project(r.Context(), device.Owner)
	if err != nil {
		return err
	}
	var f figures
	var ended int64
	own := gormsessions.ForUser(device.Owner)
	for _, q := range []struct {
		into  *int64
		scope gormsessions.Scope
	}{{&f.Active, gormsessions.Active}, {&ended, gormsessions.Ended}, {&f.Revoked, gormsessions.Revoked}} {
		if *q.into, err = s.sessions.Count(r.Context(), own, q.scope); err != nil {
			return err
		}
	}
	f.Expired = ended - f.Revoked // Expired alone would count the revoked whose time has come
	if f.Keys, err = s.keys.Count(r.Context(), gormsessions.ForOwner(project), gormsessions.Active); err != nil {
		return err
	}
	var lives []life
	if err := s.db.WithContext(r.Context()).Model(&Device{}).Scopes(own).Limit(10_000).Find(&lives).Error; err != nil {
		return err
	}
	days := daysUntil(s.now())
	f.Charts = []chart{
		newChart("Sign-ins per day", "Sign-ins", days, signIns(lives, days), true),
		newChart("Devices signed in at the end of each day", "Devices", days, active(lives, days), false),
	}
	return s.show(w, r, "statistics", view{Title: "Statistics", Tab: "statistics", Device: device, Data: f})
}

// life is from when to when a session was good.
type life struct {
	CreatedAt            time.Time
	ExpiresAt, RevokedAt *time.Time
}

func (l life) activeAt(t time.Time) bool {
	return !l.CreatedAt.After(t) && (l.ExpiresAt == nil || l.ExpiresAt.After(t)) && (l.RevokedAt == nil || l.RevokedAt.After(t))
}

// chartDays is how many days the charts show: as long as ended sessions are kept.
const chartDays = int(retention / (24 * time.Hour))

// daysUntil are the ends of the days up to now. The last one is now: the day is
// not over.
func daysUntil(now time.Time) []time.Time {
	midnight := now.UTC().Truncate(24 * time.Hour)
	days := make([]time.Time, chartDays)
	for i := range days {
		days[i] = midnight.AddDate(0, 0, i+2-chartDays)
	}
	days[chartDays-1] = now.UTC()
	return days
}

func signIns(lives []life, days []time.Time) []int {
	counts := make([]int, len(days))
	first := days[0].AddDate(0, 0, -1)
	for _, l := range lives {
		for i, day := range days {
			if !l.CreatedAt.Before(day) && i < len(days)-1 {
				continue
			}
			if i > 0 || !l.CreatedAt.Before(first) {
				counts[i]++
			}
			break
		}
	}
	return counts
}

func active(lives []life, days []time.Time) []int {
	counts := make([]int, len(days))
	for i, day := range days {
		for _, l := range lives {
			if l.activeAt(day) {
				counts[i]++
			}
		}
	}
	return counts
}

// chart is the geometry of a drawing. The template stretches it to the width of the
// page, so there is no text in it.
type chart struct {
	Title, Unit   string
	Width, Height int
	Bars          []bar
	Line, Area    string // the points of a polyline and a polygon; empty for bars
	Grid          []int  // the heights of the lines
	Max, Half     int
	First         string
	Total         int
	Empty         bool
}

type bar struct {
	X, Y, Width, Height int
	Day                 string
	Label               string // what stands below it: of one day a week
	Count               int
}

const (
	slot   = 24 // the width of a day
	gap    = 6
	height = 160
)

func newChart(title, unit string, days []time.Time, counts []int, bars bool) chart {
	c := chart{Title: title, Unit: unit, Width: slot * len(days), Height: height, Max: 2, Empty: true}
	for _, n := range counts {
		c.Total += n
		c.Max = max(c.Max, n)
		c.Empty = c.Empty && n == 0
	}
	c.Max = roundUp(c.Max)
	c.Half = c.Max / 2
	c.Grid = []int{0, height / 2, height}
	points := make([]string, len(days))
	for i, n := range counts {
		tall := height * n / c.Max
		c.Bars = append(c.Bars, bar{X: slot*i + gap/2, Y: height - tall, Width: slot - gap, Height: tall, Day: dayOf(days[i]), Count: n})
		points[i] = strconv.Itoa(slot*i+slot/2) + "," + strconv.Itoa(height-tall)
	}
	if !bars {
		c.Line = strings.Join(points, " ")
		c.Area = strconv.Itoa(slot/2) + "," + strconv.Itoa(height) + " " + c.Line + " " + strconv.Itoa(c.Width-slot/2) + "," + strconv.Itoa(height)
	}
	last := len(days) - 1
	for i := last - 7; i >= 0; i -= 7 {
		c.Bars[i].Label = c.Bars[i].Day
	}
	c.First, c.Bars[last].Label = c.Bars[0].Day, "today"
	return c
}

// dayOf names the day that ends at t.
func dayOf(t time.Time) string { return t.Add(-time.Nanosecond).Format("2 Jan") }

// roundUp makes the top of a scale that reads well, and halves well.
func roundUp(n int) int {
	for step := 1; ; step *= 10 {
		for _, nice := range []int{2, 4, 6, 8, 10, 12, 16} {
			if n <= nice*step {
				return nice * step
			}
		}
	}
}
