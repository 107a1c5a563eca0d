//! The writer's rarer statements, inside the transaction of a batch.

use rusqlite::{Transaction, params};

use super::{Misfit, Settlement};

pub(super) fn insert_misfit(transaction: &Transaction, misfit: &Misfit) -> rusqlite::Result<()> {
    let sql = "INSERT INTO quarantine
        (received_at, sdk_app_id, client_ip, client_platform, reason, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let Misfit { sdk_app_id, client_ip, client_platform, received_at, reason, body } = misfit;
    let row = params![received_at, sdk_app_id, client_ip, client_platform, reason, body];
    transaction.prepare_cached(sql)?.execute(row)?;
    Ok(())
}

pub(super) fn settle(transaction: &Transaction, settlement: &Settlement) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("UPDATE relay SET settled_through = max(settled_through, ?1)")?
        .execute([settlement.through])?;
    for again in &settlement.again {
        let sql = "INSERT OR REPLACE INTO deferred (position, attempts, not_before, reason)
            VALUES (?1, ?2, ?3, ?4)";
        let row = params![again.position, again.attempts, again.not_before, again.reason];
        transaction.prepare_cached(sql)?.execute(row)?;
    }
    for refused in &settlement.refused {
        let sql =
            "INSERT OR REPLACE INTO dead_letters (position, accepted_at, event, refused_at, reason, traceparent)
            SELECT position, accepted_at, event, ?2, ?3, traceparent FROM events WHERE position = ?1";
        let row = params![refused.position, refused.at, refused.reason];
        transaction.prepare_cached(sql)?.execute(row)?;
    }
    let refused = settlement.refused.iter().map(|refused| &refused.position);
    for position in settlement.delivered_at_last.iter().chain(refused) {
        transaction
            .prepare_cached("DELETE FROM deferred WHERE position = ?1")?
            .execute([position])?;
    }
    Ok(())
}

pub(super) fn trim(transaction: &Transaction, to: u64) -> rusqlite::Result<()> {
    transaction.prepare_cached("DELETE FROM events WHERE position <= ?1")?.execute([to])?;
    transaction.prepare_cached("DELETE FROM ids WHERE position <= ?1")?.execute([to])?;
    Ok(())
}
