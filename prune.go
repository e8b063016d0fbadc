package gormsessions

import (
	"context"
	"database/sql"
	"fmt"
	"reflect"
	"strings"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/schema"
)

// Sessions are pruned in batches, in the order of the index that finds them:
// without an order PostgreSQL scans again what it has deleted already, and one
// large DELETE keeps the writers of SQLite waiting for seconds.
const (
	firstBatch = 100
	minBatch   = 25 // what a batch waits for other writers must not make it endless
	maxBatch   = 1000
	// The size of the batches is such that one takes about this long, far less
	// than the tenth of a second that nobody should have to wait for.
	batchTime = 1 * time.Millisecond
	// Between two batches the others have their turn, for twice as long as the batch
	// took and at least for this.
	minPause = 5 * time.Millisecond

	// So many sessions that cannot be deleted end a run, unless it is for what refers
	// to them.
	maxRefused = 100

	progressEvery = time.Second
	firstBackoff  = time.Second
)

// Prune deletes the sessions that ended longer than Config.Retention ago, by
// their expiry or by being revoked, with their retired tokens, and returns how many.
// Those that were soft-deleted so long ago go too, if the model has an indexed column
// for that. The application's own hooks are not run.
//
// It works in short batches with pauses between them, beside the sign-ins of a busy
// application. On several nodes at once, they share the work or leave it to each other.
//
// If the database fails, or ctx ends, it returns the error with the number that was
// deleted: call it again, as [Plugin.RunPruner] does. A session that cannot be deleted,
// because another table refers to it, is an error too, and stays; the others go.
func (p *Plugin[T]) Prune(ctx context.Context) (int64, error) {
	c, err := p.begin(ctx)
	if err != nil {
		return 0, err
	}
	if c.retention == Never {
		return 0, nil
	}
	now := nowOf(c.db)
	pruner := pruner{call: c, before: stored(now.Add(-c.retention)), size: firstBatch, told: time.Now()}
	for _, ended := range c.endedBy {
		if err = pruner.prune(ended); err != nil {
			break
		}
	}
	pruner.tell()
	if err == nil {
		err = pruner.failed
	}
	return pruner.total, wrap("prune", err)
}

// RunPruner calls Prune now, and then again after each interval, until ctx ends; then
// it returns nil. Run it in a goroutine of its own, on one
// node or on all. A database that fails does not end it: the error is logged by
// GORM's logger, and it tries again after a second, two, four, up to the interval.
//
//	go sessions.RunPruner(ctx, time.Hour)
//
// [ErrNotRegistered] and an interval that is not positive are errors at once.
func (p *Plugin[T]) RunPruner(ctx context.Context, every time.Duration) error {
	b, err := p.begin(ctx)
	if err != nil {
		return err
	}
	if every <= 0 {
		return fmt.Errorf("%w: RunPruner needs an interval above 0, not %v", ErrInvalidValue, every)
	}
	backoff := firstBackoff
	for {
		wait := every
		if _, err := p.Prune(ctx); err == nil {
			backoff = firstBackoff
		} else if ctx.Err() == nil {
			wait = min(backoff, every)
			backoff = min(2*backoff, every)
			b.root.Logger.Error(ctx, "gormsessions: prune %s: trying again in %v: %v", b.schema.Table, wait, err)
		}
		if pause(ctx, wait) != nil {
			return nil
		}
	}
}

// findEndedBy lists the columns by which a session can have ended, each with an
// index.
func (b *binding) findEndedBy() []*schema.Field {
	list := []*schema.Field{b.expiresAt, b.revokedAt}
	for _, index := range b.schema.ParseIndexes() {
		if f := index.Fields[0].Field; f != nil && f.FieldType == reflect.TypeFor[gorm.DeletedAt]() && f.DBName != "" {
			list = append(list, f)
		}
	}
	return list
}

// pruner is one run of Prune.
type pruner struct {
	call
	before time.Time
	size   int
	total  int64
	untold int64
	told   time.Time

	refused int   // how many could not be deleted, though nothing refers to them
	failed  error // why the last one could not be
}

// place is how far a run has come: when the session ended that it looked at last. From
// the first that cannot be deleted on, those of one moment go by their IDs, so that it
// is passed by.
type place struct {
	at, id any
	byID   bool
}

// prune deletes the sessions that ended by one column.
func (p *pruner) prune(ended *schema.Field) error {
	// From where the last batch ended: what was deleted stays in the index for a
	// while, and would be looked at again each time.
	var from place
	for {
		start := time.Now()
		batch, err := p.batch(ended, from)
		took := time.Since(start)
		switch {
		case err != nil && len(batch.ids) == 0:
			return err
		case err != nil && len(batch.ids) > 1:
			// Another table may refer to one of them: which, shows one by one.
			p.size, from.byID = 1, true
		case err != nil:
			if !referredTo(err) {
				p.refused++
			}
			if p.refused > maxRefused {
				return err
			}
			p.failed = fmt.Errorf("session %s: %w", batch.ids[0], err)
			from = place{batch.last, batch.ids[0], true}
		}
		p.total += batch.deleted
		p.untold += batch.deleted
		if time.Since(p.told) >= progressEvery {
			p.tell()
		}
		// None left; or another node has deleted the same ones, and goes on.
		if err == nil && (len(batch.ids) < p.size || batch.deleted == 0) {
			return nil
		}
		if err == nil {
			from.at = batch.last
			if from.byID {
				from.id = batch.ids[len(batch.ids)-1]
			}
			switch {
			case took > batchTime:
				p.size = max(minBatch, p.size/2)
			case took < batchTime/2:
				p.size = min(maxBatch, p.size*2)
			}
		}
		if err := pause(p.db.Statement.Context, max(minPause, 2*took)); err != nil {
			return err
		}
	}
}

// batch is what was found, and deleted, at once.
type batch struct {
	ids     []any
	deleted int64
	last    any // when the last one ended
}

// batch deletes up to size of the sessions that ended by a column, the first first.
func (p *pruner) batch(by *schema.Field, from place) (done batch, err error) {
	before, zone := p.before, time.UTC
	softly := by.FieldType == reflect.TypeFor[gorm.DeletedAt]()
	if softly {
		// GORM writes this one, in the zone of NowFunc; SQLite compares text.
		zone = p.db.NowFunc().Location()
		before = before.In(zone)
	}
	ended := group{clause.Lte{Column: at(by), Value: before}}
	if from.at != nil {
		ended = append(ended, clause.Gte{Column: at(by), Value: from.at})
	}
	if from.id != nil {
		ended = append(ended, unit("? <> ? OR ? > ?", at(by), from.at, at(p.id), from.id))
	}
	remove := func(c call) error {
		done = batch{}
		asked := c.db.Session(&gorm.Session{SkipHooks: true}).Unscoped().Where(ended).
			Order(clause.OrderByColumn{Column: at(by)}).Limit(p.size).Select(c.id.DBName, by.DBName)
		if from.byID {
			asked = asked.Order(clause.OrderByColumn{Column: at(c.id)})
		}
		if c.skipLocked {
			asked = asked.Clauses(clause.Locking{Strength: "UPDATE", Options: "SKIP LOCKED"})
		}
		list := reflect.New(reflect.SliceOf(c.schema.ModelType))
		if err := asked.Find(list.Interface()).Error; err != nil {
			return err
		}
		ids := make([]any, list.Elem().Len())
		for i := range ids {
			ids[i] = sessionAt(list.Elem().Index(i)).ID
		}
		if done.ids = ids; len(ids) == 0 {
			return nil
		}
		sessionAt(list.Elem().Index(len(ids) - 1)).inUTC()
		done.last, _ = by.ValueOf(c.db.Statement.Context, list.Elem().Index(len(ids)-1))
		if softly {
			done.last = done.last.(gorm.DeletedAt).Time.In(zone)
		}
		these := c.db.Set(retiredGone, true).Session(&gorm.Session{SkipHooks: true, SkipDefaultTransaction: true}).Unscoped().Where(clause.IN{Column: at(c.id), Values: ids})
		if !c.skipLocked { // in the meantime one may have been given another expiry
			these = these.Where(ended)
		}
		gone := these.Delete(c.value())
		done.deleted = gone.RowsAffected
		if gone.Error == nil && (!keysWanted(c.db) || c.db.Name() == "sqlite") { // no foreign key may do it
			return c.deleteRetired(c.plain(), ids)
		}
		return gone.Error
	}
	err = p.retry(func() error {
		if !p.skipLocked {
			return remove(p.call)
		}
		// MySQL's default would also lock the gaps between the rows, and so
		// deadlock with creates.
		return p.transaction(remove, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	})
	if err != nil && p.skipLocked {
		done.deleted = 0 // rolled back
	}
	return done, err
}

// referredTo recognises the error for a session that another table refers to.
func referredTo(err error) bool {
	text := strings.ToLower(err.Error())
	return strings.Contains(text, "foreign key") || strings.Contains(text, "sqlstate 23503") || strings.Contains(text, "sqlstate 23001")
}

// tell sends an event of what was pruned since the last.
func (p *pruner) tell() {
	if p.untold > 0 {
		p.send(p.db, Event{Kind: EventPruned, Time: nowOf(p.db), Count: p.untold})
		p.untold, p.told = 0, time.Now()
	}
}

// retiredGone is set on a DELETE whose retired tokens are deleted by their IDs.
const retiredGone = "gormsessions:retired_gone"

// pause waits, or returns why ctx has ended.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
