package tests

import (
	"context"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/gormsessions/gormsessions"
	"github.com/gormsessions/gormsessions/internal/conformance"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"
)

// BenchmarkR50Prune prunes the ended half of a table beside live traffic, and
// reports the longest statement of each kind and what Authenticate takes at the 99th
// percentile, alone and meanwhile.
//
//	GORMSESSIONS_ROWS=2000000 go -C tests test -run '^$' -bench R50 -benchtime 1x -timeout 1h .
func BenchmarkR50Prune(b *testing.B) {
	rows := 20_000
	if n, err := strconv.Atoi(os.Getenv("GORMSESSIONS_ROWS")); err == nil {
		rows = n
	}
	for _, d := range []conformance.Database{conformance.PostgreSQL(), conformance.MariaDB(), conformance.SQLiteFile()} {
		b.Run(d.Name, func(b *testing.B) {
			for b.Loop() {
				prune(b, d, rows)
			}
		})
	}
}

// longest is a logger that keeps the longest statement of each kind.
type longest struct {
	logger.Interface
	mu    sync.Mutex
	kinds map[string]time.Duration
}

func (l *longest) Trace(_ context.Context, begin time.Time, statement func() (string, int64), _ error) {
	took := time.Since(begin)
	sql, _ := statement()
	kind, _, _ := strings.Cut(sql, " ")
	if kind == "SELECT" && strings.Contains(sql, "ORDER BY") {
		kind = "SELECT-to-prune"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kinds[kind] = max(l.kinds[kind], took)
}

func prune(b *testing.B, d conformance.Database, rows int) {
	b.StopTimer()
	log := &longest{Interface: logger.Discard, kinds: map[string]time.Duration{}}
	db := d.Open(b, d.Dialect(b), &gorm.Config{Logger: log})
	sessions := gormsessions.New[Visit](gormsessions.Config{IdleTimeout: 24 * time.Hour})
	if err := db.Use(sessions); err != nil {
		b.Fatal(err)
	}
	list := make([]Visit, 2000)
	var live []string
	now := time.Now()
	for done := 0; done < rows; done += len(list) {
		for i := range list {
			list[i] = Visit{}
			if ended := now.Add(-time.Duration(done+i) * time.Millisecond); i%4 == 0 {
				list[i].ExpiresAt = &ended
			} else if i%4 == 1 {
				list[i].RevokedAt = &ended
			}
		}
		if err := db.Create(&list).Error; err != nil {
			b.Fatal(err)
		}
		live = append(live, string(list[2].Token), string(list[3].Token))
	}
	traffic := func(stop <-chan struct{}) (times []time.Duration) {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return times
			default:
			}
			begin := time.Now()
			if _, err := sessions.Lookup(b.Context(), live[i%len(live)]); err != nil {
				b.Error(err)
				return times
			}
			times = append(times, time.Since(begin))
			if i%10 == 0 {
				if err := sessions.Create(b.Context(), &Visit{Base: gormsessions.Base{ID: uuid.Must(uuid.NewV7())}}); err != nil {
					b.Error(err)
					return times
				}
			}
		}
	}
	during := func(work func()) time.Duration {
		stop, answered := make(chan struct{}), make(chan []time.Duration)
		go func() { answered <- traffic(stop) }()
		work()
		close(stop)
		times := <-answered
		slices.Sort(times)
		return times[len(times)*99/100]
	}
	alone := during(func() { <-time.After(5 * time.Second) })
	log.mu.Lock()
	clear(log.kinds)
	log.mu.Unlock()
	var pruned int64
	b.StartTimer()
	begin := time.Now()
	meanwhile := during(func() {
		n, err := sessions.Prune(b.Context())
		if err != nil {
			b.Error(err)
		}
		pruned = n
	})
	took := time.Since(begin)
	b.StopTimer()
	if pruned != int64(rows/2) {
		b.Errorf("pruned %d of %d", pruned, rows/2)
	}
	b.ReportMetric(float64(pruned), "pruned")
	b.ReportMetric(float64(pruned)/took.Seconds(), "rows/s")
	b.ReportMetric(float64(meanwhile)/float64(alone), "p99-ratio")
	b.ReportMetric(float64(alone.Microseconds()), "p99-alone-µs")
	for kind, d := range log.kinds {
		b.ReportMetric(float64(d.Microseconds())/1000, "longest-"+kind+"-ms")
	}
	b.StartTimer()
}
